// The graph functions of the CUDA runtime that csrc/kernels/cuda_graph/graph_loop_cuda.cu calls, on
// the CPU: a graph is a list of functions, each of which must follow from the one before.
#pragma once

#include <functional>
#include <map>
#include <utility>
#include <vector>

#define CUDART_VERSION FAKE_CUDART_VERSION
#define __global__

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };
using cudaStream_t = void*;
using cudaGraphConditionalHandle = unsigned long long;

struct dim3 {
  dim3(unsigned size = 1) : x(size) {}
  unsigned x, y = 1, z = 1;
};

struct FakeGraph {
  std::vector<std::function<void()>> nodes;
  void run() const {
    for (const auto& node : nodes) node();
  }
};
using cudaGraph_t = FakeGraph*;
using cudaGraphExec_t = FakeGraph*;
// Its graph and how many nodes that had with it.
struct FakeNode {
  FakeGraph* graph;
  size_t place;
};
using cudaGraphNode_t = FakeNode*;

// By their handles: what they are, and what each launch sets them to.
inline std::map<cudaGraphConditionalHandle, unsigned> conditions, defaults;
inline int driver_version = FAKE_CUDART_VERSION;
inline int graphs_alive = 0, uploads = 0;
// Calls until one fails, none if it is negative, and the error that the runtime keeps then.
inline int calls_left = -1;
inline cudaError_t last_error = cudaSuccess;

inline bool fails() {
  if (calls_left != 0) {
    --calls_left;
    return false;
  }
  calls_left = -1;
  last_error = cudaErrorInvalidValue;
  return true;
}
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  conditions.at(handle) = value;
}

inline cudaError_t add(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                       size_t count, std::function<void()> function) {
  const size_t known = graph->nodes.size();
  // One after the other: no two nodes may run at once.
  if (count != (known > 0 ? 1 : 0)) return cudaErrorInvalidValue;
  if (count == 1 && ((*after)->graph != graph || (*after)->place != known)) {
    return cudaErrorInvalidValue;
  }
  graph->nodes.push_back(std::move(function));
  *node = new FakeNode{graph, known + 1};
  return cudaSuccess;
}

struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};

inline cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                          const cudaGraphNode_t* after, size_t count,
                                          const cudaKernelNodeParams* kernel) {
  const auto call =
      reinterpret_cast<void (*)(cudaGraphConditionalHandle, const bool*)>(kernel->func);
  // Arguments are copied when a node is made.
  const auto handle = *static_cast<cudaGraphConditionalHandle*>(kernel->kernelParams[0]);
  const auto flag = *static_cast<const bool**>(kernel->kernelParams[1]);
  if (kernel->gridDim.x * kernel->blockDim.x != 1) return cudaErrorInvalidValue;
  return add(node, graph, after, count, [=] { call(handle, flag); });
}

inline cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                              const cudaGraphNode_t* after, size_t count,
                                              cudaGraph_t child) {
  return add(node, graph, after, count, [copy = *child] { copy.run(); });
}

constexpr unsigned cudaGraphCondAssignDefault = 1;
inline cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t,
                                                    unsigned value, unsigned flags) {
  *handle = conditions.size() + 7;
  // Without the flag a launch finds what the last one left; here that is an error.
  if (flags != cudaGraphCondAssignDefault) return cudaErrorInvalidValue;
  conditions[*handle] = defaults[*handle] = value;
  return cudaSuccess;
}

enum cudaGraphNodeType { cudaGraphNodeTypeKernel = 0, cudaGraphNodeTypeConditional = 13 };
enum cudaGraphConditionalNodeType { cudaGraphCondTypeIf = 0, cudaGraphCondTypeWhile = 1 };
struct cudaGraphNodeParams {
  cudaGraphNodeType type;
  struct {
    cudaGraphConditionalHandle handle;
    cudaGraphConditionalNodeType type;
    unsigned size;
    cudaGraph_t* phGraph_out;
  } conditional;
};
struct cudaGraphEdgeData {};

inline cudaError_t add_while_node(cudaGraphNode_t* node, cudaGraph_t graph,
                                  const cudaGraphNode_t* after, size_t count,
                                  cudaGraphNodeParams* loop) {
  auto& params = loop->conditional;
  if (loop->type != cudaGraphNodeTypeConditional || params.type != cudaGraphCondTypeWhile ||
      params.size != 1) {
    return cudaErrorInvalidValue;
  }
  const cudaGraph_t body = new FakeGraph;
  params.phGraph_out = new cudaGraph_t(body);
  return add(node, graph, after, count, [body, handle = params.handle] {
    while (conditions.at(handle) != 0) body->run();
  });
}

#if CUDART_VERSION >= 13000
inline cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                    const cudaGraphNode_t* after, const cudaGraphEdgeData*,
                                    size_t count, cudaGraphNodeParams* params) {
  return add_while_node(node, graph, after, count, params);
}
#else
inline cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                    const cudaGraphNode_t* after, size_t count,
                                    cudaGraphNodeParams* params) {
  return add_while_node(node, graph, after, count, params);
}
#endif

inline cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  if (fails()) return last_error;
  ++graphs_alive;
  *graph = new FakeGraph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  --graphs_alive;
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph,
                                        unsigned long long) {
  if (fails()) return last_error;
  ++graphs_alive;
  *made = new FakeGraph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t made) { return cudaGraphDestroy(made); }
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) {
  if (fails()) return last_error;
  if (stream == nullptr) return cudaErrorInvalidValue;
  ++uploads;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t made, cudaStream_t stream) {
  if (fails()) return last_error;
  if (stream == nullptr) return cudaErrorInvalidValue;
  conditions = defaults;
  made->run();
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "fake"; }

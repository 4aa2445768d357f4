#include <cuda_runtime.h>

#include "common/cuda_error.h"
#include "kernels/cuda_graph/loop.h"

namespace fastnode {

struct GraphLoop {
  cudaGraphExec_t graph;
};

namespace {

// Conditional nodes are of CUDA 12.3, in which kernels could not yet set them by themselves.
#if CUDART_VERSION >= 12040

__global__ void set_condition_kernel(cudaGraphConditionalHandle handle, const bool* running) {
  cudaGraphSetConditional(handle, *running ? 1u : 0u);
}

// After the body, which torch captured before the handle was there.
cudaError_t add_condition(cudaGraph_t graph, cudaGraphNode_t after,
                          cudaGraphConditionalHandle handle, const bool* running) {
  void* arguments[] = {&handle, &running};
  cudaKernelNodeParams kernel = {};
  kernel.func = reinterpret_cast<void*>(set_condition_kernel);
  kernel.gridDim = dim3(1);
  kernel.blockDim = dim3(1);
  kernel.kernelParams = arguments;
  cudaGraphNode_t node;
  return cudaGraphAddKernelNode(&node, graph, &after, 1, &kernel);
}

// `after` may be null.
cudaError_t add_while(cudaGraph_t graph, const cudaGraphNode_t* after,
                      cudaGraphConditionalHandle handle, cudaGraph_t* body) {
  const size_t count = after == nullptr ? 0 : 1;
  cudaGraphNodeParams loop = {cudaGraphNodeTypeConditional};
  loop.conditional.handle = handle;
  loop.conditional.type = cudaGraphCondTypeWhile;
  loop.conditional.size = 1;
  cudaGraphNode_t node;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaGraphAddNode(&node, graph, after, nullptr, count, &loop);
#else
  const cudaError_t error = cudaGraphAddNode(&node, graph, after, count, &loop);
#endif
  if (error == cudaSuccess) *body = loop.conditional.phGraph_out[0];
  return error;
}

cudaError_t build(cudaGraph_t graph, cudaGraph_t first, cudaGraph_t body, const bool* running) {
  cudaGraphConditionalHandle handle;
  cudaGraphNode_t node;
  cudaGraph_t inside;
  // True at each launch: a step of a solve that has ended changes nothing, and few end without one.
  cudaError_t error =
      cudaGraphConditionalHandleCreate(&handle, graph, 1, cudaGraphCondAssignDefault);
  if (error == cudaSuccess && first != nullptr) {
    error = cudaGraphAddChildGraphNode(&node, graph, nullptr, 0, first);
  }
  if (error == cudaSuccess) {
    error = add_while(graph, first == nullptr ? nullptr : &node, handle, &inside);
  }
  if (error == cudaSuccess) error = cudaGraphAddChildGraphNode(&node, inside, nullptr, 0, body);
  if (error == cudaSuccess) error = add_condition(inside, node, handle, running);
  return error;
}

#else

cudaError_t build(cudaGraph_t, cudaGraph_t, cudaGraph_t, const bool*) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace

bool graph_loop_available() {
  int driver = 0;
  return CUDART_VERSION >= 12040 && cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12040;
}

int graph_loop_create(void* first, void* body, const bool* running, void* cuda_stream,
                      GraphLoop** loop) {
  cudaGraph_t graph;
  cudaError_t error = cudaGraphCreate(&graph, 0);
  if (error != cudaSuccess) return taken(error);
  error = build(graph, static_cast<cudaGraph_t>(first), static_cast<cudaGraph_t>(body), running);
  cudaGraphExec_t made = nullptr;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&made, graph, 0);
  // Else the first launch would do it.
  if (error == cudaSuccess) error = cudaGraphUpload(made, static_cast<cudaStream_t>(cuda_stream));
  cudaGraphDestroy(graph);
  if (error == cudaSuccess) {
    *loop = new GraphLoop{made};
  } else if (made != nullptr) {
    cudaGraphExecDestroy(made);
  }
  return taken(error);
}

int graph_loop_launch(GraphLoop* loop, void* cuda_stream) {
  return taken(cudaGraphLaunch(loop->graph, static_cast<cudaStream_t>(cuda_stream)));
}

void graph_loop_destroy(GraphLoop* loop) {
  cudaGraphExecDestroy(loop->graph);
  delete loop;
}

const char* graph_loop_error(int code) { return cudaGetErrorString(cudaError_t(code)); }

}  // namespace fastnode

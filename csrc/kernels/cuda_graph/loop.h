// A CUDA graph that runs one captured graph once and another one over and over, for as long as a
// flag on the device stands: a loop in which the host has no part.
#pragma once

namespace fastnode {

// Opaque: an instantiated graph with a conditional WHILE node.
struct GraphLoop;

// Whether this build and the driver at hand know conditional nodes (CUDA 12.4).
bool graph_loop_available();

// `first` and `body` are graphs of the CUDA runtime (cudaGraph_t), which are copied; `first` may be
// null. `running` is in device memory, read after each time that the body has run: it runs at least
// once. What the body holds must be what conditional nodes allow: kernels, copies, memsets. The
// loop is uploaded on the stream. Gives a cudaError_t.
int graph_loop_create(void* first, void* body, const bool* running, void* cuda_stream,
                      GraphLoop** loop);
int graph_loop_launch(GraphLoop* loop, void* cuda_stream);
void graph_loop_destroy(GraphLoop* loop);
const char* graph_loop_error(int code);

}  // namespace fastnode

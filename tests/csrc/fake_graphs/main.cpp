// Builds loops from recorded graphs and prints what their launches did, a letter for each node.
#include <cstdio>
#include <string>

#include "cuda_runtime.h"
#include "kernels/cuda_graph/loop.h"

using namespace fastnode;

int main() {
  bool running = true;
  int left = 0;
  std::string log;
  FakeGraph first, body;
  first.nodes.push_back([&] { log += 'f'; });
  first.nodes.push_back([&] { running = left > 0; });
  body.nodes.push_back([&] { log += 'b'; });
  body.nodes.push_back([&] { running = --left > 0; });

  std::printf("%d\n", graph_loop_available());
  GraphLoop* loop = nullptr;
  int stream = 0;
  const int error = graph_loop_create(&first, &body, &running, &stream, &loop);
  std::printf("%d %d %d\n", error, graphs_alive, uploads);
  if (error != 0) return 0;
  for (int steps : {3, 0, 1}) {
    left = steps;
    log += ' ';
    if (graph_loop_launch(loop, &stream) != 0) return 1;
  }
  GraphLoop* rest = nullptr;
  if (graph_loop_create(nullptr, &body, &running, &stream, &rest) != 0) return 1;
  left = 2;
  running = true;
  log += " |";
  if (graph_loop_launch(rest, &stream) != 0) return 1;
  running = false;
  log += " |";
  if (graph_loop_launch(rest, &stream) != 0) return 1;
  // Each call that fails leaves nothing behind: no graph, and no error for others to find.
  for (int n = 0; n < 4; ++n) {
    const int alive = graphs_alive;
    GraphLoop* none = nullptr;
    calls_left = n;
    const int failed = n < 3 ? graph_loop_create(nullptr, &body, &running, &stream, &none)
                             : (calls_left = 0, graph_loop_launch(loop, &stream));
    if (failed == 0 || none != nullptr || graphs_alive != alive || last_error != 0) return 2;
  }
  calls_left = -1;
  graph_loop_destroy(loop);
  graph_loop_destroy(rest);
  std::printf("%s\n%d\n", log.c_str(), graphs_alive);
  driver_version = 12030;
  std::printf("%d\n", graph_loop_available());
}

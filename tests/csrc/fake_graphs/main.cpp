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
  const int error = graph_loop_create(&first, &body, &running, &loop);
  std::printf("%d %d\n", error, graphs_alive);
  if (error != 0) return 0;
  int stream = 0;
  for (int steps : {3, 0, 1}) {
    left = steps;
    log += ' ';
    if (graph_loop_launch(loop, &stream) != 0) return 1;
  }
  GraphLoop* rest = nullptr;
  if (graph_loop_create(nullptr, &body, &running, &rest) != 0) return 1;
  left = 2;
  running = true;
  log += " |";
  if (graph_loop_launch(rest, &stream) != 0) return 1;
  running = false;
  log += " |";
  if (graph_loop_launch(rest, &stream) != 0) return 1;
  graph_loop_destroy(loop);
  graph_loop_destroy(rest);
  std::printf("%s\n%d\n", log.c_str(), graphs_alive);
  driver_version = 12030;
  std::printf("%d\n", graph_loop_available());
}

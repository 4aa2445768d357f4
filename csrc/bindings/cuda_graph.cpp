// What fastnode.engines.cuda_graph.engine captures and launches.
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "bindings/bindings.h"
#include "bindings/read_tableau.h"
#include "driver/cuda_graph_step.h"
#include "kernels/cuda_graph/loop.h"
#include "ops/cuda_stream.h"

namespace fastnode {
namespace {

std::unique_ptr<GraphStep> make_step(at::Tensor y, std::shared_ptr<Tableau> tableau,
                                     const std::array<double, 9>& numbers,
                                     std::vector<int64_t> sizes, std::vector<double> rtol,
                                     std::vector<double> atol, int64_t output_count,
                                     int64_t max_num_steps, bool all_together, int64_t capacity,
                                     bool keeps_starts, const StiffnessRows& stiffness) {
  const auto [safety, ifactor, dfactor, smallest, min_step, max_step, b1, b2, b3] = numbers;
  const Controller controller{safety,   ifactor, dfactor, smallest, min_step,
                              max_step, b1,      b2,      b3,       tableau->order};
  return std::make_unique<GraphStep>(
      std::move(y), std::move(tableau), controller,
      GraphStep::Parts{std::move(sizes), std::move(rtol), std::move(atol)},
      GraphStep::Limits{output_count, max_num_steps, all_together, capacity, keeps_starts},
      read_pair(stiffness));
}

// What a copy of GraphStep::memory says.
py::dict read(const at::Tensor& bytes) {
  Control control;
  TORCH_CHECK(bytes.is_cpu() && bytes.numel() >= int64_t(sizeof(control)), "not a copy of memory");
  std::memcpy(&control, bytes.const_data_ptr(), sizeof(control));
  const Course& course = control.course;
  py::dict found;
  found["t"] = course.t;
  found["h"] = course.h;
  found["direction"] = course.direction;
  found["taken"] = course.taken;
  found["ratio"] = course.ratio;
  found["attempts"] = course.attempts;
  found["accepted"] = course.accepted;
  found["rejected"] = course.rejected;
  found["noted"] = control.noted;
  found["next"] = control.next;
  found["running"] = control.running;
  return found;
}

#ifdef FASTNODE_WITH_CUDA
class Loop {
 public:
  // Graphs and flag by their addresses, as torch.cuda.CUDAGraph.raw_cuda_graph gives them.
  Loop(uintptr_t first, uintptr_t body, uintptr_t running, int64_t device)
      : device_(c10::DeviceType::CUDA, c10::DeviceIndex(device)) {
    const c10::DeviceGuard guard(device_);
    check(graph_loop_create(reinterpret_cast<void*>(first), reinterpret_cast<void*>(body),
                            reinterpret_cast<const bool*>(running),
                            current_cuda_stream(device_, "graph engine"), &loop_));
  }
  ~Loop() { graph_loop_destroy(loop_); }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  void launch() {
    const c10::DeviceGuard guard(device_);
    check(graph_loop_launch(loop_, current_cuda_stream(device_, "graph engine")));
  }

 private:
  static void check(int error) {
    TORCH_CHECK(error == 0, "graph engine: ", graph_loop_error(error));
  }

  c10::Device device_;
  GraphLoop* loop_ = nullptr;
};
#endif

}  // namespace

void bind_graph(py::module_& m) {
  py::class_<GraphStep>(m, "GraphStep")
      .def(py::init(&make_step))
      .def("image", &GraphStep::image)
      .def("try_first", &GraphStep::try_first)
      .def("choose_first", &GraphStep::choose_first)
      .def("begin", &GraphStep::begin)
      .def("stage", &GraphStep::stage)
      .def("solution", &GraphStep::solution)
      .def("conclude", &GraphStep::conclude)
      .def("commit", &GraphStep::commit)
      .def("place", &GraphStep::place)
      .def("increment", &GraphStep::increment)
      .def_readonly("memory", &GraphStep::memory)
      .def_readonly("y", &GraphStep::y)
      .def_readonly("f", &GraphStep::f)
      .def_readonly("times", &GraphStep::times)
      .def_readonly("outputs", &GraphStep::outputs)
      .def_readonly("ends", &GraphStep::ends)
      .def_readonly("errors", &GraphStep::errors)
      .def_readonly("stiffness", &GraphStep::stiffness)
      .def_readonly("starts", &GraphStep::starts)
      // Parts of memory: whether there is more to do, and how many records there are.
      .def_property_readonly("running",
                             [](const GraphStep& self) {
                               return self.memory.narrow(0, offsetof(Control, running), 1);
                             })
      .def_property_readonly(
          "noted",
          [](const GraphStep& self) { return self.memory.narrow(0, offsetof(Control, noted), 8); })
      .def_static("read", &read);

#ifdef FASTNODE_WITH_CUDA
  m.def("graph_loops", &graph_loop_available);
  py::class_<Loop>(m, "GraphLoop")
      .def(py::init<uintptr_t, uintptr_t, uintptr_t, int64_t>(), py::arg("first"), py::arg("body"),
           py::arg("running"), py::arg("device"))
      .def("launch", &Loop::launch);
#else
  m.def("graph_loops", [] { return false; });
#endif
}

}  // namespace fastnode

// The Python module fastnode._C. Tensor ops register themselves with torch's dispatcher (ops/*.cpp)
// when this library is loaded; only what is not a tensor op is bound here.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "driver/python_calls.h"
#include "ops/build_info.h"
#include "ops/result_pool.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels and driver of fastnode";
  m.def("build_info", [] {
    pybind11::dict info;
    for (const auto& [key, value] : fastnode::build_info()) info[key] = value;
    return info;
  });
  m.def("pool_statistics", [] {
    const auto [in_use, kept, peak] = fastnode::pool_statistics();
    pybind11::dict bytes;
    bytes["in_use"] = in_use;
    bytes["kept"] = kept;
    bytes["peak"] = peak;
    return bytes;
  });
  m.def("set_python_calls",
        [](pybind11::object not_finite_at_start, pybind11::object cannot_continue,
           pybind11::object raise_failure, pybind11::object double_backward) {
          fastnode::python_calls() = {not_finite_at_start, cannot_continue, raise_failure,
                                      double_backward};
        });
  fastnode::bind_driver(m);
  fastnode::bind_mlp(m);
  fastnode::bind_mlp_takes(m);
  fastnode::bind_mlp_samples(m);
  fastnode::bind_mlp_step(m);
  fastnode::bind_layers(m);
  fastnode::bind_problem(m);
  fastnode::bind_train_step(m);
  fastnode::bind_graph(m);
  m.def("release_pool", fastnode::release_pool, "Returns kept memory to the system");
}

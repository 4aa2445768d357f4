#pragma once

#include <pybind11/pybind11.h>

namespace fastnode {

// The loops of a solve, as fastnode.engines.native.joint uses them.
void bind_driver(pybind11::module_& m);
void bind_mlp(pybind11::module_& m);
void bind_mlp_takes(pybind11::module_& m);
void bind_mlp_samples(pybind11::module_& m);
void bind_mlp_step(pybind11::module_& m);
void bind_graph(pybind11::module_& m);
void bind_layers(pybind11::module_& m);
void bind_problem(pybind11::module_& m);
void bind_train_step(pybind11::module_& m);

}  // namespace fastnode

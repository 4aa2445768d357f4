"""The backward pass of checkpoint.py with its step captured as a CUDA graph.

Where a solve ran as a graph, its backward pass too takes steps of one form: the stages again, each
with its graph, and their transpose from the last to the first (stages.py). That is captured once,
over fixed memory, and launched for each step, the last one first. The host copies what a step
begins with, and waits for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.adjoints.discrete.autograd_node import Cotangents, Inputs
from fastnode.adjoints.discrete.checkpoint import StepChain
from fastnode.adjoints.discrete.step_transpose import Gradients, Scheme
from fastnode.engines.cuda_graph import runtime as graph_runtime
from fastnode.engines.cuda_graph.field import cannot_capture
from fastnode.engines.cuda_graph.plan import cached, no_autocast_cache
from fastnode.engines.native import joint as native
from fastnode.torch_support.recompute import module_of

if TYPE_CHECKING:
    from fastnode.problem.ivp import VectorField


@contextmanager
def aliased(func: Any, params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Leaves in the place of a module's parameters, on their memory.

    Autograd ties a parameter to the stream on which it was first used, and would synchronise with
    that one in a capture, which forbids it; these are used on the capture's alone.
    """
    leaves = {id(x): x.detach().requires_grad_() for x in params}
    module = module_of(func)
    held = [] if module is None else [each._parameters for each in module.modules()]
    before = [dict(each) for each in held]
    try:
        for each in held:
            each.update({n: leaves.get(id(x), x) for n, x in each.items()})  # pyright: ignore
        yield [leaves[id(x)] for x in params]
    finally:
        for each, entries in zip(held, before, strict=True):
            each.update(entries)


class BackwardStep:
    """One step, transposed, over fixed memory.

    Args:
        field: of the solve.
        func: gives the caller's function, without keeping it.
        y: a state.
        scheme: what the steps have in common.
        params: the tensors that func holds and that need a gradient.
    """

    def __init__(
        self,
        field: VectorField,
        func: Callable[[], Any],
        y: Tensor,
        scheme: Scheme,
        params: Sequence[Tensor],
    ):
        self.scheme, self.func, self.layout = scheme, func, field.layout
        self.accept = type(field)(None, field.layout, y, field.direction).accept  # pyright: ignore
        self.args = [x.detach().clone() if isinstance(x, Tensor) else x for x in field.args]
        tableau = native.compiled(scheme.tableau)
        control = (1.0,) * 9
        self.step = extension.native().GraphStep(
            torch.empty_like(y, memory_format=torch.contiguous_format),
            tableau, control, [y.numel()], [0.0], [1.0], 2, 1, True, 1, False, None,
        )  # fmt: skip
        self.step.memory.copy_(self.step.image(1.0, field.direction, [0.0, field.direction]))
        self.times = self.step.times.unbind()
        self.numbers = torch.ones(3, dtype=torch.float64, device=y.device)
        self.cotangent = torch.zeros_like(self.step.y)
        self.sums = Gradients(params)
        self.lock = threading.Lock()
        self.runtime = graph_runtime.runtime_for(y.device)
        self.step.y.copy_(y)
        with no_autocast_cache():
            with self.runtime.uncaptured():
                #: Whether the field reads its parameters where the aliases are.
                self.takes = not self._vjp(self.sums.wanted)
            if not self.takes:
                return
            try:
                self.captured = self.runtime.capture(self._vjp)
            except RuntimeError as error:
                raise cannot_capture(
                    f"its gradient does what a graph cannot hold ({error})"
                ) from error

    def begin(self, args: Sequence[Any]) -> None:
        step = self.step
        self.runtime.begin_use([step.y, self.numbers, self.cotangent, *self.sums.sums])
        self.cotangent.zero_()
        for each in self.sums.sums:
            each.zero_()
        for ours, theirs in zip(self.args, args, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)

    def vjp(self, y: Tensor, numbers: Tensor) -> None:
        """Takes ``cotangent`` from the end of a step to its beginning, where the state was y."""
        self.step.y.copy_(y)
        self.numbers.copy_(numbers)
        self.runtime.replay(self.captured)

    def finish(self) -> tuple[Tensor, list[Tensor]]:
        found = self.cotangent.clone(), [each.clone() for each in self.sums.sums]
        self.runtime.end_use()
        return found

    def _vjp(self, held: Sequence[Tensor] = ()) -> bool:
        """Whether any of the tensors ``held`` has a gradient."""
        func = self.func()
        with aliased(func, self.sums.wanted) as params:
            return self._transpose(func, params, held)

    def _transpose(self, func: Any, params: Sequence[Tensor], held: Sequence[Tensor]) -> bool:
        step, scheme = self.step, self.scheme
        weights = scheme.tableau.solution_weights
        step.place(self.numbers)
        order = scheme.needed(weights.stages)
        k: dict[int, Tensor] = {}
        graphs: dict[int, tuple[Tensor, Tensor]] = {}
        for i in order:
            derivatives = [k.get(j, step.y) for j in range(i)]
            leaf = (step.stage(derivatives, i) if i else step.y.clone()).requires_grad_()
            with torch.enable_grad():
                derivative = self.accept(func(self.times[i], self.layout.unpack(leaf), *self.args))
            graphs[i] = leaf, derivative
            k[i] = derivative.detach().contiguous()
        terms = {
            j: [(w, self.cotangent)] for j, w in zip(weights.stages, weights.values, strict=True)
        }
        total, reached = self.cotangent, False
        for i in reversed(order):
            leaf, derivative = graphs.pop(i)
            if i not in terms or not derivative.requires_grad:
                continue
            values, tensors = zip(*terms.pop(i), strict=True)
            mu, *rest = torch.autograd.grad(
                [derivative],
                [leaf, *params, *held],
                [step.increment(list(tensors), list(values))],
                allow_unused=True,
            )
            self.sums.add(rest[: len(params)])
            reached = reached or any(g is not None for g in rest[len(params) :])
            if mu is None:
                continue
            mu = mu.contiguous()
            total = total + mu
            row = scheme.rows[i]
            for j, w in zip(row.stages, row.values, strict=True):
                terms.setdefault(j, []).append((w, mu))
        self.cotangent.copy_(total)
        return reached


class CapturedChain(StepChain):
    """Steps of a solve that ran as a graph."""

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        if not self._simple(inputs):
            return super().vjp(inputs, kept, cotangents)
        field, edges = self.problem.field, self.edges
        func, y0 = self.observed.func, inputs.y0
        key = (self.scheme.tableau, field.direction, tuple(map(id, inputs.params)))
        with torch.inference_mode(False), torch.no_grad():
            step = cached(
                func,
                field,
                y0,
                ("backward", *key),
                lambda weak: BackwardStep(field, weak, y0, self.scheme, inputs.params),
            )
            if not step.takes:
                return super().vjp(inputs, kept, cotangents)
            rows = [(t, t1, float(n == 0)) for n, (t, t1) in enumerate(pairwise(edges))]
            numbers = torch.tensor(rows, dtype=torch.float64).to(y0.device, non_blocking=True)
            states = [y0, *kept]
            with step.lock:
                step.begin(field.args)
                for n in reversed(range(len(rows))):
                    for slot, _ in self.outputs.get(n, ()):
                        g = cotangents[slot]
                        if g is not None:
                            step.cotangent.add_(g)
                    step.vjp(states[n], numbers[n])
                of_y0, of_params = step.finish()
        return [of_y0, None, None, *of_params]

    def _simple(self, inputs: Inputs) -> bool:
        """Whether the captured step does what is asked: no gradients of times or arguments, no
        outputs inside of steps, no buffers, of which the backward pass uses copies, and none but a
        module's parameters, which the capture has aliases of."""
        plain = inputs.ts is None and inputs.grid is None and not inputs.args
        at_ends = all(t == self.edges[n + 1] for n, found in self.outputs.items() for _, t in found)
        modules = self.surroundings.modules
        buffers = any(module._buffers for module in modules)
        held = {id(x) for module in modules for x in module._parameters.values()}
        all_held = held.issuperset(map(id, inputs.params))
        return plain and at_ends and not buffers and all_held and self.slots is None

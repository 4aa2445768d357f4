"""The continuous adjoint: gradients by an ODE that runs backwards from the end of a solve.

With a = dL/dy along the solution of dy/dt = f(t, y, p), between two output times

    dy/dt = f,    da/dt = -a^T df/dy,    dL/dp = int a^T df/dp dt,

and at an output time t_i the gradient g_i of the loss by the solution there is added to a. The
times themselves have dL/dt_i = g_i^T f(t_i, y_i), and dL/dt_0 = -a(t_0)^T f(t_0, y_0).
Sources: R. T. Q. Chen et al., Neural ordinary differential equations, NeurIPS 2018, appendix B and
algorithm 2; seminorm: P. Kidger, R. T. Q. Chen, T. Lyons, "Hey, that's not an ODE", ICML 2021.

Of the forward solve only the output is kept. The gradient is that of the exact solution up to the
tolerances of both solves, not that of the numerical one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.continuous.adjoint_norm import AdjointNorm
from fastnode.adjoints.continuous.backward_solve import BackwardSolve
from fastnode.engines.methods import find_method, odeint_request
from fastnode.problem.ivp import Layout, Problem, VectorField
from fastnode.torch_support.batched_grads import for_each_cotangent
from fastnode.torch_support.grad_mode import recorded
from fastnode.torch_support.partial_grad import PartialGradGates
from fastnode.torch_support.recompute import Surroundings


class Adjoint:
    """The continuous adjoint of one solve, its arguments checked.

    Args:
        problem: what is solved; its y0 and t get gradients.
        params: further tensors that f depends on and that get gradients, all of which require one.
        method, rtol, atol, options: of the adjoint solve, as in ``odeint``; tolerances may also be
            a tuple for (t, y, a, *params). ``norm`` in options is the largest norm among y, a and
            each of params by default; "seminorm" for y and a alone; or a function of the scaled
            errors (t, *y, *a, *params), of which that of t, which is not integrated, is zero.
        state_norm: norm of y and of a; root mean square of each tensor if None.
        solve_with_graph: solves the problem under autograd; needed for second derivatives, which
            are those of that solve.

    Raises:
        ValueError, TypeError: method, options or tolerances are wrong.
    """

    def __init__(
        self,
        problem: Problem,
        params: Sequence[Tensor],
        *,
        method: str | None,
        rtol: Any,
        atol: Any,
        options: Mapping[str, Any] | None = None,
        state_norm: Callable[[Any], Any] | None = None,
        solve_with_graph: Callable[[Problem], Tensor] | None = None,
    ):
        self.problem, self.params, self.solve_with_graph = problem, tuple(params), solve_with_graph
        find_method(method)
        self._given = {
            "method": method,
            "rtol": rtol,
            "atol": atol,
            "state_norm": state_norm,
            "solve_with_graph": solve_with_graph,
        }
        chosen = dict(options or {})
        norm = chosen.pop("norm", None)
        if not (norm is None or callable(norm) or norm == "seminorm"):
            raise TypeError(f"norm in adjoint_options must be callable or 'seminorm', got {norm!r}")
        self.request = odeint_request(method, rtol, atol, chosen)
        self.norm = AdjointNorm(problem, self.params, rtol, atol, norm, state_norm)
        #: None where there will be no backward pass.
        self._surroundings: Surroundings | None = None
        if recorded((problem.y0, problem.t), self.params):
            self._surroundings = Surroundings(problem.func, problem.y0.device)
        self._named_norm = norm
        #: The options with the norm in use, a function of (t, y, a, *params) with y and a packed:
        #: what torchdiffeq's users find and change in ``grad_fn.adjoint_options``.
        self.options = {**chosen, "norm": self.norm.of_packed}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The forward pass, without an autograd graph."""
        surroundings = self._surroundings
        with torch.no_grad(), nullcontext() if surroundings is None else surroundings.forward():
            yield

    def recomputation(self) -> AbstractContextManager[None]:
        """The backward pass, with func as it was in the forward pass."""
        assert self._surroundings is not None
        return self._surroundings.recomputation(False, self.params)

    def with_options(self, options: dict[str, Any]) -> Adjoint:
        """This adjoint with such options as ``options`` has; itself if they are the same."""
        own, norm = self.options, options.get("norm")
        if options.keys() == own.keys() and all(options[name] is own[name] for name in own):
            return self
        if norm is own["norm"]:
            norm = self._named_norm
        elif callable(norm):
            norm = partial(_of_parts, norm, self.problem.layout)
        made = Adjoint(self.problem, self.params, options={**options, "norm": norm}, **self._given)
        made._surroundings = self._surroundings
        return made

    def attach(self, solution: Tensor, t: Tensor | None = None) -> Tensor:
        """``solution``, which autograd has not recorded, with its gradients.

        Args:
            solution: packed states [T, *problem.y0.shape] at t.
            t: the times, those of the problem by default.
        """
        times = self.problem.t if t is None else t
        result = _Continuous.apply(self, [solution], self.problem.y0, times, *self.params)
        assert isinstance(result, Tensor)
        return result

    def gradients(
        self, solution: Tensor, t: Tensor, grad: Tensor, timed: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """dL by y0, by t if ``timed``, and by each of params; ``grad`` is dL by the solution."""
        field, times = self.problem.field, t.tolist()
        solve = BackwardSolve(self)
        by_time: list[Tensor] = []
        a = grad[-1]
        for i in range(len(times) - 1, 0, -1):
            if timed:
                by_time.append(_inner(grad[i], field(times[i], solution[i])))
            a = solve.interval(times[i], times[i - 1], solution[i], a)
            if timed and i == 1:
                by_time.append(-_inner(a, field(times[0], solution[0])))
            a = a + grad[i - 1]
        self.norm.watch(None)
        params = [
            total.to(param.dtype) for total, param in zip(solve.totals(), self.params, strict=True)
        ]
        if not timed:
            return a, None, params
        if not by_time:
            return a, torch.zeros_like(t), params
        return a, torch.stack(by_time[::-1]).to(t.device, t.dtype), params


def _of_parts(norm: Callable[[Any], Any], layout: Layout, parts: tuple[Tensor, ...]) -> Any:
    """The value of a norm of (t, y, a, *params) for (t, *y, *a, *params)."""
    count = 1 if layout.shapes is None else len(layout.shapes)
    t, *rest = parts
    halves = rest[:count], rest[count : 2 * count]
    packed = (half[0] if layout.shapes is None else layout.pack(tuple(half)) for half in halves)
    return norm((t, *packed, *rest[2 * count :]))


def _inner(a: Tensor, f: Tensor) -> Tensor:
    return torch.vdot(a.reshape(-1), f.reshape(-1)).real


class _Continuous(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, adjoint: Adjoint, made: list[Tensor], y0: Tensor, t: Tensor, *params: Tensor
    ) -> Tensor:
        solution = made.pop()
        ctx.adjoint = adjoint
        ctx.adjoint_options = dict(adjoint.options)
        ctx.save_for_backward(solution, y0, t, *params)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        solution, y0, t, *params = ctx.saved_tensors
        adjoint: Adjoint = ctx.adjoint.with_options(ctx.adjoint_options)
        timed = ctx.needs_input_grad[3]

        def gradients(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
            (grad,) = grads
            assert grad is not None
            with adjoint.recomputation():
                if torch.is_grad_enabled():
                    return _differentiable(adjoint, grad, (y0, t, *params))
                by_y0, by_t, by_params = adjoint.gradients(solution, t, grad, timed)
                return [by_y0, by_t, *by_params]

        return None, None, *for_each_cotangent(gradients, grads)


def _differentiable(
    adjoint: Adjoint, grad: Tensor, inputs: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Differentiable gradients: those of the steps of a second solve under autograd."""
    if adjoint.solve_with_graph is None:
        raise RuntimeError(
            "the continuous adjoint has first derivatives only here; backprop has second ones"
        )
    problem, field, gates = adjoint.problem, adjoint.problem.field, PartialGradGates()
    with torch.enable_grad():
        args = {id(x): gates(x) for x in field.args}
        y0, t = map(gates, inputs[:2])
        given = tuple(args[id(x)] for x in field.args)
        own = VectorField(field.func, field.layout, y0, field.direction, given, field.warn_of_cast)
        solution = adjoint.solve_with_graph(problem.with_(field=own, y0=y0, t=t))
        # What func itself holds has no copy; no path goes on from a leaf.
        inputs = (y0, t, *(args.get(id(x), x) for x in adjoint.params))
        wanted = [each for each in inputs if each.requires_grad]
        found = iter(
            torch.autograd.grad(solution, wanted, grad, create_graph=True, allow_unused=True)
        )
    gates.open()
    return [
        (torch.zeros_like(x) if (g := next(found)) is None else g) if x.requires_grad else None
        for x in inputs
    ]

"""The face of torchdiffeq's adjoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.adjoints.continuous.adjoint import Adjoint
from fastnode.api.odeint import odeint
from fastnode.control.norms import ErrorNorm
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.fused import joint as fused
from fastnode.engines.fused.mlp import tensors
from fastnode.engines.methods import find_method, odeint_request
from fastnode.events.search import attach_event_gradients, solve_until_event
from fastnode.ops.dispatch import transformed
from fastnode.problem.ivp import Problem, State, make_problem
from fastnode.torch_support.warn import warn

#: States of a tile of samples that the fused engine keeps in the backward pass.
FUSED_SLOTS = 64


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    args: tuple[Any, ...] = (),
) -> Any:
    """odeint with gradients by the continuous adjoint, an ODE solved backwards in backward().

    No step of the forward solve is kept, and the gradient is that of the exact solution up to the
    tolerances. Gradients flow to y0, t, args and adjoint_params, and to nothing else that func
    holds. Second derivatives are those of odeint, through the steps of a further solve.

    Inside torch.func transforms, forward-mode differentiation and torch.compile gradients are those
    of odeint. So are those of a field that the fused engine solves, unless adjoint_rtol,
    adjoint_atol, adjoint_method or adjoint_options say how the adjoint is to be solved: it keeps no
    step of the forward solve either, but computes them once more (see ``fastnode.Revolve``).

    Args:
        func, y0, t, rtol, atol, method, options, event_fn, args: as in odeint. Its attributes
            callback_step_adjoint, callback_accept_step_adjoint and callback_reject_step_adjoint,
            where func has them, are called in the adjoint solve with (t0, state, dt); state is
            (gradient of t, y, gradient of y, *gradients of adjoint_params) at the start of a step,
            of which the first is zero, and y and its gradient lie in one dimension for a tuple.
        adjoint_method: method of the adjoint solve, by default the same.
        adjoint_rtol, adjoint_atol: its tolerances, by default the same; also a tuple for (t, y,
            gradient of y, *gradients of adjoint_params), the first of which has no effect.
        adjoint_options: its options, by default the same but for the norm. norm takes the scaled
            error of such a tuple (a tuple state and its gradient element by element); by default
            it is the largest of the state's norm of y and of its gradient, and the root mean square
            of each parameter's gradient; "seminorm" leaves the latter out, which is faster and
            leaves their errors to chance. A first step is chosen by y and its gradient alone.
        adjoint_params: tensors that get a gradient, zero if the solution does not depend on them,
            if they require one; the parameters of func if it is None.

    Returns:
        As odeint.

    Raises:
        ValueError: func is no nn.Module and adjoint_params is None; or adjoint_method differs from
            method, options is given and adjoint_options is not; or fully_shard was applied to func
            itself.
        ValueError, TypeError, SolverError: as in odeint; in backward() too for the adjoint solve.
    """
    params = _parameters(func, adjoint_params)
    if adjoint_method is not None:
        find_method(adjoint_method)
        if adjoint_method != method and options is not None and adjoint_options is None:
            raise ValueError(
                f"adjoint_options must be given with options where adjoint_method "
                f"({adjoint_method!r}) differs from method ({method!r})"
            )
    if adjoint_options is not None and not isinstance(adjoint_options, Mapping):
        raise TypeError(f"adjoint_options must be a dict, got {type(adjoint_options).__name__}")
    trained = [param for param in params if param.requires_grad]
    if len(trained) < len(params) and callable((adjoint_options or {}).get("norm")):
        warn("adjoint_params that require no gradient are not in what the adjoint norm is given")
    if torch.compiler.is_compiling() or transformed():
        result = odeint(
            func,
            y0,
            t,
            rtol=rtol,
            atol=atol,
            method=method,
            options=options,
            event_fn=event_fn,
            args=args,
        )
        return _depend(result, trained, event_fn is not None)

    request = odeint_request(method, rtol, atol, options)
    problem = make_problem(func, y0, t, args)
    ErrorNorm(problem.layout, problem.y0, rtol, atol)
    inherited = {key: value for key, value in (options or {}).items() if key != "norm"}
    known = {id(param) for param in trained}
    trained += [
        arg
        for arg in args
        if isinstance(arg, Tensor) and arg.requires_grad and id(arg) not in known
    ]
    asked = (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options, event_fn)
    if callable(getattr(type(func), "perceptron", None)) and all(each is None for each in asked):
        solution = _by_fused_engine(problem, request, trained)
        if solution is not None:
            return solution
    adjoint = Adjoint(
        problem,
        trained,
        method=request.method if adjoint_method is None else adjoint_method,
        rtol=rtol if adjoint_rtol is None else adjoint_rtol,
        atol=atol if adjoint_atol is None else adjoint_atol,
        options=inherited if adjoint_options is None else adjoint_options,
        state_norm=(options or {}).get("norm"),
        solve_with_graph=lambda problem: select.step_through(problem, request),
    )
    if event_fn is not None:
        return _until_event(adjoint, problem, request, event_fn)
    with adjoint.forward():
        solution = select.integrate(problem, request)
    return problem.layout.unpack(adjoint.attach(solution))


def _by_fused_engine(
    problem: Problem, request: SolveRequest, trained: list[Tensor]
) -> Tensor | None:
    """The solution with the gradients of its own steps; None where the fused engine does not run
    or would give one to a tensor that is to have none."""
    known = {id(x) for x in trained}
    if not all(id(x) in known for x in problem.func.parameters() if x.requires_grad):
        return None
    revolving = request.derived.get("revolving")
    if revolving is None:
        revolving = request.with_(adjoint="revolve", slots=FUSED_SLOTS)
        request.derived["revolving"] = revolving
    if select.choose(problem, revolving) != "fused":
        return None
    solution = fused.integrate(problem, revolving)
    used = [x for x in tensors(problem.mlp) if x.requires_grad]
    return solution if len(used) == len(trained) else _depend(solution, trained, False)


def _until_event(
    adjoint: Adjoint,
    problem: Problem,
    request: SolveRequest,
    event_fn: Callable[..., Any],
) -> tuple[Tensor, Any]:
    """The adjoint of a solve up to a time that is held fixed, and then that time's own gradient."""
    layout = problem.layout
    with adjoint.forward():
        event_t, states = solve_until_event(problem, request, event_fn)
    solution = torch.stack(layout.pack_times(states))
    times = torch.cat([problem.t[:1], event_t.reshape(1).to(problem.t)])
    linked = layout.unpack(adjoint.attach(solution, times))
    return attach_event_gradients(problem, event_fn, event_t, linked)


def _parameters(
    func: Callable[..., Any], adjoint_params: Iterable[Tensor] | None
) -> tuple[Tensor, ...]:
    """What is to have gradients, each tensor once."""
    if adjoint_params is not None:
        params = tuple(adjoint_params)
    elif not isinstance(func, nn.Module):
        raise ValueError(
            "func must be an nn.Module where adjoint_params is None, "
            f"got {type(func).__name__}; adjoint_params=() says that it has no parameters"
        )
    elif getattr(func, "_is_replica", False):
        # nn.DataParallel hands its replicas their parameters as plain attributes.
        held = [value for module in func.modules() for value in vars(module).values()]
        params = tuple(value for value in held if isinstance(value, Tensor) and value.requires_grad)
    else:
        params = tuple(func.parameters())
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"adjoint_params[{i}] must be a tensor, got {type(param).__name__}")
        if _is_sharded(param):
            raise ValueError(
                f"adjoint_params[{i}] is a DTensor, whose gradient func's own hooks would have to "
                "make: apply fully_shard to the module that calls odeint_adjoint, not to func"
            )
    return tuple({id(param): param for param in params}.values())


def _is_sharded(param: Tensor) -> bool:
    # Where nobody has loaded the module there are none, and loading it takes long.
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(param, distributed.DTensor)


def _depend(result: Any, params: list[Tensor], event: bool) -> Any:
    """Gives parameters that the solution does not depend on a gradient of zero."""
    if not params or not torch.is_grad_enabled():
        return result
    if event:
        event_t, solution = result
        return _depend(event_t, params, False), _depend(solution, params, False)
    if isinstance(result, tuple):
        return tuple(part + _Zero.apply(part, *params) for part in result)
    return result + _Zero.apply(result, *params)


class _Zero(torch.autograd.Function):
    """A zero that depends on parameters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(like: Tensor, *params: Tensor) -> Tensor:
        return torch.zeros((), dtype=like.dtype, device=like.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.zeros_like(param) for param in ctx.saved_tensors)

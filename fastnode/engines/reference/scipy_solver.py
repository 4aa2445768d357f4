"""A solve by SciPy, in float64 and on the CPU between calls of the vector field; no gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastnode.control.norms import ErrorNorm, Tolerance
from fastnode.errors import SolverError
from fastnode.problem.ivp import Time, VectorField, to_float
from fastnode.torch_support.grad_mode import followed


def integrate_scipy(
    field: VectorField,
    y: Tensor,
    times: Sequence[Time],
    norm: ErrorNorm,
    *,
    solver: Any = "LSODA",
    min_step: float = 0.0,
    max_step: float = math.inf,
) -> Tensor:
    """The solution [T, ...] at ``times`` by scipy.integrate.solve_ivp, detached from any graph.

    Args:
        norm: holds the tolerances; SciPy measures errors in its own norm.
        solver: a name that solve_ivp knows, or a class derived from scipy.integrate.OdeSolver.
        min_step, max_step: limits for the size of a step; LSODA alone has the first.

    Raises:
        ValueError: SciPy is not installed, or the solver is unknown.
        TypeError: the state is complex.
        ValueError: forward-mode differentiation follows the state or the times.
        SolverError: SciPy gave up.
    """
    try:
        from scipy import integrate
    except ImportError as error:
        raise ValueError("method 'scipy_solver' needs SciPy, which is not installed") from error
    names: tuple[Any, ...] = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
    derived = isinstance(solver, type) and issubclass(solver, integrate.OdeSolver)
    if solver not in names and not derived:
        raise ValueError(
            f"solver must be one of {', '.join(names)} or an OdeSolver class, got {solver!r}"
        )
    if y.is_complex():
        raise TypeError(f"y0 must be real for method 'scipy_solver', got {y.dtype}")
    if forward_ad._current_level >= 0 and (followed(y) or isinstance(times[0], Tensor)):
        # In backward mode the solution has no graph, which backward() says.
        raise ValueError("method 'scipy_solver' has no derivatives, got a state or times with some")
    if len(times) == 1:
        return y.detach().clone().unsqueeze(0)

    def func(t: float, flat: Any) -> Any:
        state = torch.as_tensor(flat).to(y.device, y.dtype).reshape(y.shape)
        with torch.no_grad():
            return field(t, state).detach().cpu().double().reshape(-1).numpy()

    options: dict[str, Any] = {"method": solver, "max_step": max_step}
    if min_step:
        options["min_step"] = min_step
    points = [to_float(t) for t in times]
    found = integrate.solve_ivp(
        func,
        (points[0], points[-1]),
        y.detach().cpu().double().reshape(-1).numpy(),
        t_eval=points,
        rtol=_flat(norm.rtol, norm, y),
        atol=_flat(norm.atol, norm, y),
        **options,
    )
    if not found.success:
        last = float(found.t[-1]) if len(found.t) else points[0]
        raise SolverError(f"SciPy stopped after t = {last:g}: {found.message}", time=last)
    solution = torch.as_tensor(found.y.T.copy()).to(y.device, y.dtype)
    return solution.reshape(len(points), *y.shape)


def _flat(tolerances: Sequence[Tolerance], norm: ErrorNorm, y: Tensor) -> Any:
    """One number, or one for each element of the packed state."""
    if len(tolerances) == 1 and not isinstance(tolerances[0], Tensor):
        return tolerances[0]
    shapes = norm.layout.shapes or (y.shape,)
    parts = [
        torch.as_tensor(tolerance, dtype=torch.float64).cpu().expand(shape).reshape(-1)
        for tolerance, shape in zip(tolerances, shapes, strict=True)
    ]
    return torch.cat(parts).numpy()

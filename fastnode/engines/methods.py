"""Which engine runs a method: the one place that knows every method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from fastnode.control.norms import ErrorNorm
from fastnode.control.options import (
    AdamsOptions,
    AdaptiveOptions,
    FixedOptions,
    ImplicitOptions,
    ScipyOptions,
    parse,
)
from fastnode.control.request import SolveRequest, adaptive_request
from fastnode.engines.fused import joint as fused
from fastnode.engines.reference.adams import AdamsSteps
from fastnode.engines.reference.implicit import ImplicitSteps
from fastnode.engines.reference.step import ExplicitSteps, StepFunction
from fastnode.problem.ivp import Problem
from fastnode.tableaus import IMPLICIT, METHODS, Tableau
from fastnode.tableaus.custom import make_tableau, same_coefficients

ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
SCIPY = "scipy_solver"
Coefficient: TypeAlias = int | float | str | Fraction

#: Methods that choose their steps.
ADAPTIVE = {name: tableau for name, tableau in METHODS.items() if tableau.error is not None}
#: Methods that step along a grid.
FIXED = [*(name for name in METHODS if name not in ADAPTIVE), *ADAMS, *IMPLICIT]
#: What ``solve`` and ``odeint`` know.
SOLVED = [*ADAPTIVE, *FIXED]
NAMES = [*SOLVED, SCIPY]
#: Those of ``register_method``.
_OWN: dict[str, Tableau] = {}


def register_method(
    name: str,
    a: Sequence[Sequence[Coefficient]],
    b: Sequence[Coefficient],
    *,
    order: int,
    b_hat: Sequence[Coefficient] | None = None,
) -> None:
    """Makes an explicit Runge-Kutta method of your own known by its name, everywhere.

    ``odeint``, ``solve``, ``NeuralODE`` and all others then take it as ``method=name``, in every
    engine and with every adjoint that knows such methods. With ``b_hat`` it chooses its steps;
    then it is given a last stage at the end of the step, unless it has one (FSAL), and as dense
    output the cubic with the values and derivatives of both ends, of order 3. Its stability along
    the negative real axis, for ``Steps.stiffness``, is computed.

    Args:
        name: not that of another method; the same coefficients may be registered again.
        a: a row for each of 1 to 24 stages; row i has i entries. Entries are integers, floats,
            Fractions or strings such as "3/8"; fractions stay exact until they meet the state.
        b: weights of the solution, one for each stage.
        order: order of b, 1 to 8.
        b_hat: weights of the embedded solution, whose distance from the other estimates the error;
            of order 1 at least. None for a method of fixed steps.

    Raises:
        ValueError: the name is taken, the shape of a table is wrong, or b does not meet the
            conditions of ``order``.
        TypeError: name is no string, or an entry no number.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    tableau = make_tableau(name, a, b, order, b_hat)
    if name in _OWN and same_coefficients(tableau, _OWN[name]):
        return
    if not name or name in NAMES:
        raise ValueError(f"name must be that of no other method, got {name!r}")
    _OWN[name] = METHODS[name] = tableau
    if tableau.error is None:
        FIXED.append(name)
    else:
        ADAPTIVE[name] = tableau
    SOLVED.append(name)
    NAMES.append(name)
    fused.register(tableau)


def find_method(method: Any) -> str:
    name = "dopri5" if method is None else method
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {method!r}")
    return name


def odeint_request(
    method: Any, rtol: Any, atol: Any, options: Mapping[str, Any] | None, engine: str = "auto"
) -> SolveRequest:
    """What ``odeint`` is asked for.

    Raises:
        ValueError, TypeError: the method or an option is wrong.
    """
    size = None if options is None else _only_step_size(options)
    plain = type(rtol) is float and type(atol) is float and type(engine) is str
    if plain and (options is None or size is not None) and (method is None or type(method) is str):
        # The smallest solves take a few microseconds: so equal arguments share a request.
        key = method, rtol, atol, engine, size
        known = _REQUESTS.get(key)
        if known is None:
            if len(_REQUESTS) >= 64:
                _REQUESTS.clear()
            known = new_odeint_request(method, rtol, atol, options, engine)
            if size is None or known.fixed is not None:
                # Else a warning is due each time.
                _REQUESTS[key] = known
        return known
    return new_odeint_request(method, rtol, atol, options, engine)


def _only_step_size(options: Mapping[str, Any]) -> float | None:
    """The step size, if it is all that the options hold."""
    if type(options) is not dict or len(options) != 1:
        return None
    size = options.get("step_size")
    return size if type(size) is float else None


_REQUESTS: dict[Any, SolveRequest] = {}
_DEFAULTS = AdaptiveOptions()


def new_odeint_request(
    method: Any, rtol: Any, atol: Any, options: Mapping[str, Any] | None, engine: str
) -> SolveRequest:
    """The same, always a new one: a graph of torch.compile can hold no other."""
    name = find_method(method)
    if name in ADAPTIVE:
        chosen = _DEFAULTS if options is None else parse(AdaptiveOptions, name, options)
        return adaptive_request(name, rtol, atol, chosen, engine=engine)
    if name == SCIPY:
        return SolveRequest(name, rtol, atol, engine, scipy=parse(ScipyOptions, name, options))
    return SolveRequest(name, rtol, atol, engine, fixed=fixed_options(name, options))


def fixed_options(name: str, options: Mapping[str, Any] | None) -> FixedOptions:
    """The options of one of ``FIXED``."""
    if name in IMPLICIT:
        return parse(ImplicitOptions, name, options)
    return parse(AdamsOptions if name in ADAMS else FixedOptions, name, options)


def fixed_steps(problem: Problem, request: SolveRequest) -> StepFunction:
    """The steps of one of ``FIXED``, made for one solve."""
    name, options = request.method, request.fixed
    if isinstance(options, ImplicitOptions):
        return ImplicitSteps(IMPLICIT[name], options.max_iters)
    if not isinstance(options, AdamsOptions):
        return ExplicitSteps(METHODS[name])
    corrector = None
    if name != "explicit_adams":
        corrector = ErrorNorm(problem.layout, problem.y0, request.rtol, request.atol, _largest)
    return AdamsSteps(options.order(corrector is None), corrector, options.max_iters)


def _largest(error: Any) -> float:
    parts = error if isinstance(error, tuple) else (error,)
    return max((part.abs().max().item() for part in parts if part.numel()), default=0.0)

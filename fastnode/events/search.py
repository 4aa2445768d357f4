"""Events: where a function of time and state changes its sign, and how that moves with parameters.

The search takes a solve as a sequence of pieces with a continuous solution each, one for each step,
so it is the same for every method and engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.methods import fixed_steps
from fastnode.engines.reference.fixed import GridStep
from fastnode.errors import EventNotFound, InvalidValue, NonFiniteState
from fastnode.problem.ivp import (
    Layout,
    Problem,
    Time,
    VectorField,
    clock_dtype,
    reached,
    time_tensor,
    to_float,
)
from fastnode.torch_support.compile import uncompiled
from fastnode.torch_support.grad_mode import followed

#: Steps after which a search with fixed steps ends; the number is torchdiffeq's.
MAX_FIXED_STEPS = 20000


class SolutionPiece(NamedTuple):
    """A piece of a solution: state ``y1`` at its end ``t1``, ``at(t)`` inside."""

    t: Time
    t1: Time
    y1: Tensor
    at: Callable[[float], Tensor]

    def state(self, x: float) -> tuple[float, Tensor]:
        """Time and state at the fraction x of the piece."""
        if x == 1:
            return to_float(self.t1), self.y1
        start = to_float(self.t)
        t = start + x * (to_float(self.t1) - start)
        return t, self.at(t)

    @property
    def resolution(self) -> float:
        """Distance between neighbouring times, as a fraction."""
        start, end = to_float(self.t), to_float(self.t1)
        return math.ulp(max(abs(start), abs(end))) / abs(end - start)


class EventFunction:
    """The caller's event_fn over the packed state, with its results checked."""

    def __init__(
        self, event_fn: Callable[..., Any], layout: Layout, dtype: torch.dtype, device: torch.device
    ):
        if not callable(event_fn):
            raise TypeError(f"event_fn must be callable, got {type(event_fn).__name__}")
        self.event_fn, self.layout, self.dtype, self.device = event_fn, layout, dtype, device

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """All elements of the event function, [n]."""
        time = time_tensor(t, self.dtype, self.device)
        values = self.event_fn(time, self.layout.unpack(y))
        if not isinstance(values, Tensor):
            raise TypeError(f"event_fn must return a tensor, got {type(values).__name__}")
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"event_fn must return real values, got {values.dtype}")
        if values.numel() == 0:
            raise ValueError(f"event_fn must return at least one value, got {tuple(values.shape)}")
        return values.reshape(-1)

    def values(self, t: float, y: Tensor) -> list[float]:
        with torch.no_grad():
            values = self(t, y).double().tolist()
        if any(math.isnan(value) for value in values):
            raise NonFiniteState(f"event_fn returned NaN at t = {t:.9g}", time=t)
        return values


class FoundEvent(NamedTuple):
    """The event lies at time t, where the state is y; element ``index`` changed its sign."""

    t: float
    y: Tensor
    index: int


class SignSearch:
    """Looks for sign changes of the elements of an event function along a solution.

    Signs are compared with those shortly after the start, at the fraction ``16 sqrt(resolution)``
    of the first piece, where ``resolution`` is the relative precision of the numbers at the start:
    so a search that begins at an event finds the next one. Elements that are still zero there get
    their sign where they first differ from zero. Two changes within one piece are not detected.
    """

    def __init__(self, event: EventFunction, resolution: float):
        self.event = event
        self.first = min(1.0, 16 * math.sqrt(resolution))
        self.signs: list[float] = []

    def within(self, piece: SolutionPiece) -> FoundEvent | None:
        """The first change in the next piece, just after it."""
        signs = self.signs
        x, low = (1.0 if signs and all(signs) else self.first), 0.0
        while True:
            values = self.event.values(*piece.state(x))
            signs = signs or [0.0] * len(values)
            if len(values) != len(signs):
                raise ValueError(
                    f"event_fn must return {len(signs)} values each time, got {len(values)}"
                )
            if _distance(signs, values) <= 0:
                return _locate(self.event, piece, signs, low, x)
            signs = [s or float((v > 0) - (v < 0)) for s, v in zip(signs, values, strict=True)]
            self.signs = signs
            if x == 1:
                return None
            low, x = x, (1.0 if all(signs) else min(1.0, 8 * x))

    def passed(self, found: FoundEvent) -> float:
        """Continues after ``found``; returns 1 where that element rose and -1 where it fell."""
        self.signs[found.index] *= -1
        return self.signs[found.index]


def first_event(
    event: EventFunction, pieces: Iterable[SolutionPiece], resolution: float
) -> FoundEvent:
    """The first sign change of an element of ``event``, just after it."""
    search = SignSearch(event, resolution)
    for piece in pieces:
        found = search.within(piece)
        if found is not None:
            return found
    raise EventNotFound("event_fn did not change its sign")


def _distance(signs: list[float], values: list[float]) -> float:
    """Positive as long as no element has changed its sign."""
    return min((s * v for s, v in zip(signs, values, strict=True) if s), default=math.inf)


def _locate(
    event: EventFunction, piece: SolutionPiece, signs: list[float], low: float, high: float
) -> FoundEvent:
    def distance(x: float) -> float:
        return _distance(signs, event.values(*piece.state(x)))

    t, y = piece.state(_first_root(distance, low, high, 2 * piece.resolution))
    values = event.values(t, y)
    margins = [s * v if s else math.inf for s, v in zip(signs, values, strict=True)]
    return FoundEvent(t, y, margins.index(min(margins)))


def _first_root(g: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Just after g, positive at low and not at high, changes its sign: at most ``tolerance`` later.

    A scan of the interval picks the first sign change if there are several; ITP then needs few
    evaluations and never more than bisection plus one. Source: I. F. D. Oliveira, R. H. C.
    Takahashi, An enhancement of the bisection method average performance preserving minmax
    optimality, ACM Trans. Math. Softw. 47 (2021), algorithm 1, with kappa_1 = 0.2 / (b - a),
    kappa_2 = 2, n_0 = 1.
    """
    a, ga, b, gb = low, math.nan, high, g(high)
    for i in range(1, 8):
        x = low + (high - low) * i / 8
        gx = g(x)
        if gx <= 0:
            b, gb = x, gx
            break
        a, ga = x, gx
    if math.isnan(ga):
        ga = g(a)
    width = b - a
    if ga <= 0:
        return a
    if width <= tolerance:
        return b
    left = math.ceil(math.log2(width / tolerance)) + 1
    while b - a > tolerance:
        middle = (a + b) / 2
        slack = tolerance / 2 * 2**left - (b - a) / 2
        shift = 0.2 / width * (b - a) ** 2
        falsi = (gb * a - ga * b) / (gb - ga) if math.isfinite(ga - gb) else middle
        side = math.copysign(1.0, middle - falsi)
        x = falsi + side * shift if shift <= abs(middle - falsi) else middle
        if abs(x - middle) > slack:
            x = middle - side * slack
        gx = g(x)
        if gx > 0:
            a, ga = x, gx
        else:
            b, gb = x, gx
            if gx == 0:
                break
        left -= 1
    return b


def attach_gradients(
    field: VectorField, event: EventFunction, t: Tensor, y: Tensor, index: int
) -> tuple[Any, Any]:
    """The event time with its gradient, and the state at the event with the gradient through it.

    With g(t, y) = 0 at the event and y(s) the solution at a time s held fixed, the implicit
    function theorem has

        dt = -(g_y dy(s) + dg) / (g_t + g_y f),        dy(t) = dy(s) + f dt,

    dg being the change of g through its own parameters. First derivatives only. Where autograd
    finds no dependence of the event function on t and y, both are returned unchanged.
    """
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return t, y
    value = event(t, y)[index]
    if not followed(value):
        return t, y
    time, state = t.detach(), y.detach()
    by_time, by_state = _event_gradients(event, index, time, state)
    with torch.no_grad():
        # Constants in forward mode too, which grad mode does not end.
        derivative = field(time, state).detach()
        rate = torch.zeros_like(value) if by_time is None else by_time.to(value)
        if by_state is not None:
            rate = rate + (by_state.conj() * derivative).real.sum().to(value)
        rate = rate.detach()
    if rate == 0:
        return t, y
    shift = (value.detach() - value) / rate
    return t + shift.to(t), y + derivative * shift.to(y.device, y.dtype.to_real())


def _event_gradients(
    event: EventFunction, index: int, t: Tensor, y: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """dg/dt and dg/dy of an element of the event function; None where it does not depend on it."""
    if torch._C._are_functorch_transforms_active():
        # Inside of a transform autograd alone makes no derivatives.
        value, gradients, *_ = torch.func.vjp(lambda t, y: event(t, y)[index], t, y)
        return gradients(torch.ones_like(value))
    with torch.enable_grad():
        time, state = t.detach().requires_grad_(), y.detach().requires_grad_()
        value = event(time, state)[index]
    if not value.requires_grad:
        return None, None
    by_time, by_state = torch.autograd.grad(value, (time, state), allow_unused=True)
    return by_time, by_state


def solve_until_event(
    problem: Problem, request: SolveRequest, event_fn: Callable[..., Any]
) -> tuple[Tensor, Any]:
    """(event time, states at the start and at the event), with gradients."""
    field = problem.field
    if len(problem.t) != 2:
        raise ValueError(f"t must hold 2 times where event_fn is given, got {len(problem.t)}")
    if request.adaptive:
        event = EventFunction(event_fn, problem.layout, clock_dtype(field.device), field.device)
        pieces = _adaptive_pieces(problem, request)
    elif request.fixed is not None:
        event = EventFunction(event_fn, problem.layout, field.time_dtype, field.device)
        pieces = _fixed_pieces(problem, request)
    else:
        raise ValueError(
            f"event_fn must be None with method {request.method!r}, which locates no events"
        )
    resolution = max(torch.finfo(dtype).eps for dtype in (field.time_dtype, problem.t.dtype))
    found = first_event(event, pieces, resolution)
    t = torch.tensor(found.t, dtype=clock_dtype(field.device), device=field.device)
    t, y = attach_gradients(field, event, t, found.y, found.index)
    solution = problem.layout.unpack(torch.stack([problem.y0, y]))
    return t.to(problem.t.dtype), solution


@uncompiled
def attach_event_gradients(
    problem: Problem, event_fn: Callable[..., Any], event_t: Tensor, solution: Any
) -> tuple[Tensor, Any]:
    """The event that another solver found, with gradients; those that it has already are kept."""
    layout, field = problem.layout, problem.field
    start, y = layout.pack_times(solution)
    event = EventFunction(event_fn, layout, event_t.dtype, field.device)
    with torch.no_grad():
        index = int(event(event_t, y).abs().argmin())
    event_t, y = attach_gradients(field, event, event_t, y, index)
    return event_t, layout.unpack(torch.stack([start, y]))


def _adaptive_pieces(problem: Problem, request: SolveRequest) -> Iterator[SolutionPiece]:
    field = problem.field
    end = math.copysign(torch.finfo(field.time_dtype).max, field.direction)
    callbacks = select.adaptive_callbacks(problem, request)
    stepper = select.make_stepper(problem, request, end=end, callbacks=callbacks)
    while not reached(stepper.t, end, field.direction):
        step = stepper.advance()
        yield SolutionPiece(step.t, step.t1, step.y1, step.at)
    raise EventNotFound(f"no event up to t = {end:g}, the last time that there is", time=end)


def _fixed_pieces(problem: Problem, request: SolveRequest) -> Iterator[SolutionPiece]:
    fixed, step = request.fixed, fixed_steps(problem, request)
    assert fixed is not None
    if fixed.step_size is None:
        raise InvalidValue(
            f"options must hold step_size where method {request.method!r} looks for an event"
        )
    start, h = problem.times[0], fixed.step_size * problem.field.direction
    grid = (start + i * h for i in count())
    callbacks, y = select.fixed_callbacks(problem, request), problem.y0
    for t, t1 in islice(pairwise(grid), MAX_FIXED_STEPS):
        callbacks.step(t, y, t1 - t)
        made = step(problem.field, t, t1, y, fixed.perturb)
        y = made.y1
        inside = GridStep(made, fixed.interp, fixed.perturb)
        yield SolutionPiece(made.t, made.t1, made.y1, inside.at)
    raise EventNotFound(f"no event within {MAX_FIXED_STEPS} steps of {h:g}")

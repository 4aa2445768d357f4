"""Per-sample stepping of many small initial value problems, in one kernel.

A program keeps a few trajectories in registers, from the first step to the last. The field is a
device function of the caller's, compiled into the kernel.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .stepping import (
    all_finite,
    at_least,
    at_most,
    before,
    choose,
    combine,
    derivatives,
    first_step,
    interpolate,
    is_any,
    is_finite,
    next_step,
    norm,
    store_rows,
    weighted_derivatives,
)
from .tiling import ceil_div

# One trajectory for each thread of a program of one warp: threads wait for the slowest of their
# program, so the smaller it is the less they wait, and nothing is exchanged over shared memory. An
# estimate, which no GPU has timed.
LANES = 32
WARPS = 1


class Method(NamedTuple):
    """An embedded FSAL method as plain numbers.

    a, error: rows of the tableau. dense: of each stage the coefficients of x, x^2, ...
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    dense: tuple[tuple[float, ...], ...]
    order: int


class ControllerNumbers(NamedTuple):
    """The numbers of a controller (fastnode/control/controllers.py)."""

    safety: float
    ifactor: float
    dfactor: float
    smallest: float
    min_step: float
    max_step: float
    b1: float
    b2: float
    b3: float


# The step is that of fastnode.engines.reference.per_sample.PerSampleSolve, line by line. Time and
# the size of steps are float64 whatever the state is; their ratios, powers among them, have the
# state's type.
@triton.jit
def solve_kernel(
    y0,
    ts,
    numbers,
    ys,
    counts,
    status,
    places,
    B,
    T,
    rtol: tl.float64,
    atol: tl.float64,
    h0: tl.float64,
    max_steps,
    FIELD: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    DIRECTION: tl.constexpr,
    CHOOSE: tl.constexpr,
    INSIDE: tl.constexpr,
    C: tl.constexpr,
    A: tl.constexpr,
    ERROR: tl.constexpr,
    DENSE: tl.constexpr,
    ORDER: tl.constexpr,
    CONTROL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    compute: tl.constexpr = y0.dtype.element_ty
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(B, tl.int64)
    present = lane < size
    # tl.full, because the interpreter hands over Python floats, which have no method `to`.
    relative, absolute = tl.full([BLOCK], rtol, compute), tl.full([BLOCK], atol, compute)
    y = ()
    for d in tl.static_range(D):
        y = y + (tl.load(y0 + lane * D + d, mask=present, other=0.0),)
    p = ()
    for i in tl.static_range(P):
        p = p + (tl.load(numbers + i * size + lane, mask=present, other=0.0),)
    store_rows(ys + lane * D, y, present)

    end = tl.load(ts + T - 1)
    t = tl.zeros([BLOCK], tl.float64) + tl.load(ts)
    f = derivatives(FIELD, t, y, p)
    failure = tl.where(all_finite(y) & all_finite(f), 0, 1)
    running = present & (failure == 0)
    evaluations = tl.full([BLOCK], 1, tl.int32)
    if CHOOSE:
        h = first_step(FIELD, t, y, f, p, tl.abs(end - t), relative, absolute, DIRECTION, ORDER)
        evaluations += running.to(tl.int32)
    else:
        h = tl.full([BLOCK], h0, tl.float64)
    h = at_most(at_least(h, CONTROL[4]), CONTROL[5])
    held = running & (t + h * DIRECTION == t)
    failure = tl.where(held, tl.where(is_finite(h), 2, 1), failure)
    running = running & ~held

    accepts, rejects = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    pending = tl.full([BLOCK], 1, tl.int32)
    previous, earlier = tl.full([BLOCK], 1.0, compute), tl.full([BLOCK], 1.0, compute)
    while is_any(running):
        room = tl.where(running, tl.abs(end - t), 0.0)
        taken = tl.minimum(h, room)
        t1 = tl.where(running, tl.where(h < room, t + h * DIRECTION, end), t)
        signed = t1 - t
        step = signed.to(compute)
        k = (f,)
        y1 = y
        for s in tl.static_range(1, len(A)):
            y1 = combine(y, k, step, A, s)
            if C[s] == 1.0:
                at = before(t1.to(compute), DIRECTION)
            else:
                at = (t + signed * C[s]).to(compute)
            k = k + (derivatives(FIELD, at, y1, p),)
        error = ()
        for d in tl.static_range(D):
            error = error + (step * weighted_derivatives(k, ERROR, 0)[d],)
        ratio = norm(error, y, y1, relative, absolute)
        following = next_step(taken, ratio, previous, earlier, ORDER, CONTROL)
        kept = (ratio <= 1) | ((taken <= CONTROL[4]) & is_finite(ratio))
        accepted, rejected = running & kept, running & ~kept
        accepts += accepted.to(tl.int32)
        rejects += rejected.to(tl.int32)

        if INSIDE:
            time = tl.load(ts + pending, mask=accepted & (pending < T), other=0.0)
            due = accepted & (pending < T) & ((time - t1) * DIRECTION <= 0)
            while is_any(due):
                x = ((time - t) / signed).to(compute)
                value = choose(time == t1, y1, interpolate(y, k, step, x, DENSE))
                store_rows(ys + (pending * size + lane) * D, value, due)
                pending += due.to(tl.int32)
                time = tl.load(ts + pending, mask=due & (pending < T), other=0.0)
                due = due & (pending < T) & ((time - t1) * DIRECTION <= 0)

        grown = tl.where(taken < h, tl.maximum(following, h), following)
        stuck = rejected & (following >= taken)
        h = tl.where(accepted, grown, tl.where(rejected, following, h))
        earlier = tl.where(accepted, previous, earlier)
        previous = tl.where(accepted, ratio, previous)
        t = tl.where(accepted, t1, t)
        y = choose(accepted, y1, y)
        f = choose(accepted, k[len(A) - 1], f)
        running = running & (t != end)
        held = running & (stuck | (t + h * DIRECTION == t))
        out = running & ~held & (accepts + rejects >= max_steps)
        failure = tl.where(held, tl.where(is_finite(ratio), 2, 1), tl.where(out, 3, failure))
        running = running & ~held & ~out

    unreached = ()
    for _ in tl.static_range(D):
        unreached = unreached + (tl.full([BLOCK], float("nan"), compute),)
    if INSIDE:
        left = present & (pending < T)
        while is_any(left):
            store_rows(ys + (pending * size + lane) * D, unreached, left)
            pending += left.to(tl.int32)
            left = left & (pending < T)
    else:
        store_rows(ys + (size + lane) * D, choose(failure == 0, y, unreached), present)
    evaluations += (len(A) - 1) * (accepts + rejects)
    tl.store(counts + lane, evaluations.to(tl.int64), mask=present)
    tl.store(counts + size + lane, accepts.to(tl.int64), mask=present)
    tl.store(counts + 2 * size + lane, rejects.to(tl.int64), mask=present)
    tl.store(status + lane, failure.to(tl.int8), mask=present)
    if places is not None:
        tl.store(places + lane, t, mask=present)
        tl.store(places + size + lane, h * DIRECTION, mask=present)


def solve_trajectories(
    field: triton.JITFunction,
    y0: torch.Tensor,
    ts: torch.Tensor,
    params: torch.Tensor,
    direction: int,
    rtol: float,
    atol: float,
    first_step: float | None,
    max_num_steps: int,
    method: Method,
    control: ControllerNumbers,
    with_places: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Solves for B trajectories and T >= 2 times; no argument is checked.

    y0: [B, D]; params: [P, B]; both contiguous, one dtype. ts: [T], float64, contiguous, strictly
    monotone in ``direction``, 1 or -1.

    Returns ys [T, B, D], NaN after the end of a trajectory that failed; counts [3, B], int64:
    evaluations, accepted and rejected steps; status [B], int8, numbers of
    engines.failures.Failure; and places [2, B], float64, the time that each has reached and its
    next signed step, if asked for.
    """
    B, D = y0.shape
    T = ts.numel()
    ys = y0.new_empty(T, B, D)
    counts = torch.empty(3, B, dtype=torch.int64, device=y0.device)
    status = torch.empty(B, dtype=torch.int8, device=y0.device)
    places = y0.new_empty(2, B, dtype=torch.float64) if with_places else None
    with torch.cuda.device_of(y0):
        solve_kernel[(ceil_div(B, LANES),)](
            y0,
            ts,
            params,
            ys,
            counts,
            status,
            places,
            B,
            T,
            rtol,
            atol,
            0.0 if first_step is None else first_step,
            max_num_steps,
            field,
            D,
            params.shape[0],
            direction,
            first_step is None,
            T > 2,
            method.c,
            method.a,
            (method.error,),
            method.dense,
            method.order,
            tuple(control),
            LANES,
            num_warps=WARPS,
        )
    return ys, counts, status, places

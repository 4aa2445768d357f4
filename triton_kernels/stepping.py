"""The parts of a step of a trajectory, as device functions: stages, sums, norms, the next step.

Times and the size of steps are [BLOCK]; a state is a tuple of its components, each [BLOCK].
"""

import triton
import triton.language as tl


@triton.jit
def is_any(x):
    return tl.max(x.to(tl.int32), axis=0) > 0


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def all_finite(x):
    good = is_finite(x[0])
    for d in tl.static_range(1, len(x)):
        good = good & is_finite(x[d])
    return good


# Constants of `tl.where` and `tl.minimum` become float32 by themselves.
@triton.jit
def at_least(x, LOW: tl.constexpr):
    return tl.where(x < LOW, tl.full(x.shape, LOW, x.dtype), x)


@triton.jit
def at_most(x, HIGH: tl.constexpr):
    return tl.where(x > HIGH, tl.full(x.shape, HIGH, x.dtype), x)


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    return tl.exp2(tl.log2(x) * EXPONENT)


@triton.jit
def before(t, DIRECTION: tl.constexpr):
    """The last number before t, so that a field with a jump at t is evaluated on this side."""
    integer: tl.constexpr = tl.int64 if t.dtype == tl.float64 else tl.int32
    bits = t.to(integer, bitcast=True)
    # Numbers of one sign are ordered as their bits are; next to zero is the smallest one.
    grows = (t > 0) == (DIRECTION < 0)
    moved = tl.where(grows, bits + 1, bits - 1).to(t.dtype, bitcast=True)
    smallest = tl.full(t.shape, 1, integer).to(t.dtype, bitcast=True)
    return tl.where(t == 0, -DIRECTION * smallest, moved)


@triton.jit
def derivatives(FIELD: tl.constexpr, t, y, p):
    """The field at t [BLOCK] and y, a tuple of its components [BLOCK]."""
    found = FIELD(t.to(y[0].dtype), *y, *p)
    tl.static_assert(len(found) == len(y), "the field must return one derivative a component")
    k = ()
    for d in tl.static_range(len(y)):
        k = k + (found[d].to(y[d].dtype),)
    return k


@triton.jit
def zeros_like(y):
    out = ()
    for d in tl.static_range(len(y)):
        out = out + (tl.zeros_like(y[d]),)
    return out


@triton.jit
def combine(y, k, h, ROWS: tl.constexpr, row: tl.constexpr):
    """y + h sum_j ROWS[row][j] k_j."""
    total = weighted_derivatives(k, ROWS, row)
    out = ()
    for d in tl.static_range(len(y)):
        out = out + (y[d] + h * total[d],)
    return out


@triton.jit
def weighted_derivatives(k, ROWS: tl.constexpr, row: tl.constexpr):
    totals = ()
    for d in tl.static_range(len(k[0])):
        total = tl.zeros_like(k[0][d])
        for j in tl.static_range(len(ROWS[row])):
            if ROWS[row][j] != 0.0:
                total += k[j][d] * ROWS[row][j]
        totals = totals + (total,)
    return totals


@triton.jit
def norm(x, y0, y1, rtol, atol):
    """The root mean square of x over its tolerance."""
    total = tl.zeros_like(x[0])
    for d in tl.static_range(len(x)):
        ratio = x[d] / (atol + rtol * tl.maximum(tl.abs(y0[d]), tl.abs(y1[d])))
        total += ratio * ratio
    return tl.sqrt(total / len(x))


@triton.jit
def interpolate(y, k, h, x, DENSE: tl.constexpr):
    """y + h sum_j k_j sum_p DENSE[j][p] x^(p + 1)."""
    totals = zeros_like(y)
    for j in tl.static_range(len(k)):
        weight = tl.zeros_like(x)
        for p in tl.static_range(len(DENSE[j])):
            weight = (weight + DENSE[j][len(DENSE[j]) - 1 - p]) * x
        moved = ()
        for d in tl.static_range(len(y)):
            moved = moved + (totals[d] + h * weight * k[j][d],)
        totals = moved
    out = ()
    for d in tl.static_range(len(y)):
        out = out + (y[d] + totals[d],)
    return out


@triton.jit
def choose(which, x, y):
    out = ()
    for d in tl.static_range(len(x)):
        out = out + (tl.where(which, x[d], y[d]),)
    return out


@triton.jit
def store_rows(pointers, y, mask):
    for d in tl.static_range(len(y)):
        tl.store(pointers + d, y[d], mask=mask)


@triton.jit
def next_step(h, ratio, previous, earlier, ORDER: tl.constexpr, CONTROL: tl.constexpr):
    """fastnode.control.controllers.Controller.next_steps; CONTROL: ControllerNumbers."""
    factor = power(ratio, -CONTROL[6] / ORDER) * CONTROL[0]
    if CONTROL[7] != 0.0 or CONTROL[8] != 0.0:
        factor *= power(at_least(previous, 1e-4), -CONTROL[7] / ORDER)
        factor *= power(at_least(earlier, 1e-4), -CONTROL[8] / ORDER)
    floor = tl.where(
        ratio < 1,
        tl.full(ratio.shape, CONTROL[3], ratio.dtype),
        tl.full(ratio.shape, CONTROL[2], ratio.dtype),
    )
    factor = at_most(tl.maximum(factor, floor), CONTROL[1])
    factor = tl.where(is_finite(ratio), factor, tl.full(ratio.shape, CONTROL[2], ratio.dtype))
    return at_most(at_least(h * factor.to(h.dtype), CONTROL[4]), CONTROL[5])


@triton.jit
def first_step(
    FIELD: tl.constexpr, t, y, f, p, span, rtol, atol, DIRECTION: tl.constexpr, ORDER: tl.constexpr
):
    """fastnode.control.controllers.initial_step."""
    d0, d1 = norm(y, y, y, rtol, atol).to(tl.float64), norm(f, y, y, rtol, atol).to(tl.float64)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    h = tl.where(small, tl.full(d0.shape, 1e-6, tl.float64), 0.01 * d0 / d1)
    h = tl.minimum(h, span)
    moved = ()
    for d in tl.static_range(len(y)):
        moved = moved + (y[d] + (h * DIRECTION).to(f[d].dtype) * f[d],)
    trial = derivatives(FIELD, t + h * DIRECTION, moved, p)
    change = ()
    for d in tl.static_range(len(y)):
        change = change + (trial[d] - f[d],)
    d2 = norm(change, y, y, rtol, atol).to(tl.float64) / h
    flat = (d1 <= 1e-15) & (d2 <= 1e-15)
    scale = (0.01 / tl.maximum(d1, d2)).to(y[0].dtype)
    longer = tl.where(flat, at_least(h * 1e-3, 1e-6), power(scale, 1.0 / ORDER).to(tl.float64))
    return tl.where(is_finite(d2), tl.minimum(100 * h, longer), h)

"""Gradients of whole solves by the CUDA kernels, run as fibers on the CPU, against those of the
fused engine on the CPU."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import COMPILER
from emulated_mlp import FIXED, JOINT, PER_SAMPLE, TIMES, make, run
from emulated_mlp_backward import back

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.engines.native import joint as native
from fastnode.tableaus import METHODS

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built"),
]
GRID = [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.0]


def random(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def flat(field):
    layers, activation = field.perceptron()
    parameters = [x for weight, bias, _ in layers for x in (weight, bias) if x is not None]
    layout = [n for _, bias, column in layers for n in (column, int(bias is not None))]
    return layers, parameters, layout, activation


@torch.no_grad()
def by_cpu(field, of_ys, times, kept, edges, method, kind=JOINT, perturb=False):
    """Gradients of y0, of the times and of parameters."""
    _, parameters, layout, activation = flat(field)
    steps = torch.zeros(3, len(edges), dtype=torch.float64)
    steps[0] = torch.tensor(edges, dtype=torch.float64)
    t, adaptive = torch.tensor(times, dtype=torch.float64), kind != FIXED
    request = extension.native().MlpRequest(
        method=method,
        controller=[1.0] * 9 if adaptive else [],
        perturb=perturb,
        instructions=fused_request.INSTRUCTIONS,
    )
    packed = (method, request.numbers(), request.settings(), True, adaptive)
    return torch.ops.fastnode.mlp_solve_backward(
        of_ys, None, kept, steps, t, parameters, layout, activation, *packed
    )


def solved(field, y0, times=TIMES, method="dopri5", kind=JOINT, perturb=False):
    """The gradient of the solution, what was kept, and the edges of steps."""
    if kind == FIXED:
        found = run(field, y0, times, method, kind, grid=GRID, perturb=perturb, keep=True)
        edges = GRID
    else:
        found = run(field, y0, times, method, rtol=1e-3, atol=1e-3, keep=True)
        edges = [times[0], *found.steps("ends").tolist()]
    of_ys = random(len(times), *y0.shape, dtype=y0.dtype, seed=2)
    return of_ys, found.kept[: len(edges) - 1], edges


def of_times(field, found):
    """As the op makes it of what the kernels leave: all of the solve moves with its first time."""
    layers, *_ = flat(field)
    of_start, left = 0.0, iter(found.parameters)
    for weight, bias, column in layers:
        _, by_bias = next(left), next(left) if bias is not None else None
        if column >= 0:
            of_start += (weight[:, column].detach() * by_bias).sum()
    out = found.rates.clone()
    out[0] += of_start - found.rates.sum()
    return out


def check(field, y0, times=TIMES, method="dopri5", kind=JOINT, tolerance=1e-10, **options):
    of_ys, kept, edges = solved(field, y0, times, method, kind, **options)
    rates = kind == JOINT
    found = back(field, of_ys, times, kept, edges, method, kind, rates=rates, **options)
    by_y0, by_times, by_parameters = by_cpu(
        field, of_ys, times, kept, edges, method, kind, **options
    )
    close(found.y0, by_y0, tolerance)
    for ours, theirs in zip(found.parameters, by_parameters, strict=True):
        close(ours, theirs, tolerance)
    if rates and field.time != "none" and all(b is not None for _, b, _ in flat(field)[0]):
        close(of_times(field, found), by_times, tolerance)
    return found


def close(found, wanted, tolerance):
    scale = wanted.abs().max().item()
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3", "fehlberg2"])
@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_through_shared_steps_are_those_of_the_cpu(method, backwards):
    check(make(), random(11, 3), TIMES[::-1] if backwards else TIMES, method)


@pytest.mark.parametrize("method", ["euler", "heun3", "rk4", "dopri5"])
@pytest.mark.parametrize("perturb", [False, True])
def test_gradients_through_steps_along_a_grid(method, perturb):
    check(make(), random(11, 3), TIMES, method, FIXED, perturb=perturb)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_activations(activation):
    check(make(activation=activation), random(3, 3))


@pytest.mark.parametrize(
    "dim, hidden, depth, time",
    [
        (2, 1, 1, "every"),  # no layer between
        (1, 33, 2, "none"),  # several threads for each sum
        (5, (7, 40, 3), None, "once"),
        (70, 2, 3, "every"),  # more features than threads of a sample
        (40, 150, 2, "none"),  # several outputs for each thread, and tiles of four by four
    ],
)
def test_shapes_of_layers(dim, hidden, depth, time):
    check(make(dim, hidden, depth, time=time), random(5, dim))


def test_layers_without_biases():
    check(make(bias=False), random(5, 3))


@pytest.mark.parametrize("batch", [1, 8, 9, 100])
def test_blocks_add_up(batch):
    found = check(make(), random(batch, 3))
    assert found.plan[2] == (1 if batch <= 8 else 2)


def test_many_outputs_in_a_step():
    check(make(), random(4, 3), torch.linspace(0, 1, 70).double().tolist(), "dopri8")


def test_float32_to_its_precision():
    field, y0 = make(64, 40, dtype=torch.float32), random(20, 64, dtype=torch.float32)
    of_ys, kept, edges = solved(field, y0)
    found = back(field, of_ys, TIMES, kept, edges)
    by_y0, _, by_parameters = by_cpu(field, of_ys, TIMES, kept, edges, "dopri5")
    for ours, theirs in zip((found.y0, *found.parameters), (by_y0, *by_parameters), strict=True):
        close(ours, theirs, 2e-5)


@pytest.mark.parametrize("sums_apart", [False, True])
def test_gradients_repeat_bit_for_bit_however_reduced(sums_apart):
    field, y0 = make(dtype=torch.float32), random(50, 3, dtype=torch.float32)
    of_ys, kept, edges = solved(field, y0)
    first = back(field, of_ys, TIMES, kept, edges, rates=True)
    assert first.plan[4] == 1
    again = back(field, of_ys, TIMES, kept, edges, rates=True, sums_apart=sums_apart)
    pairs = zip(
        (first.y0, first.rates, *first.parameters),
        (again.y0, again.rates, *again.parameters),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_the_gradient_of_the_state():
    field, y0 = make(), random(9, 3)
    of_ys, kept, edges = solved(field, y0)
    whole = back(field, of_ys, TIMES, kept, edges)
    found = back(field, of_ys, TIMES, kept, edges, parameters=False)
    assert torch.equal(found.y0, whole.y0) and found.parameters == []


def test_gradients_are_those_of_differences():
    field, y0 = make(2, 5, activation="silu"), random(3, 2)
    of_ys = random(len(TIMES), 3, 2, seed=2)

    def value():
        """Of the solution by given steps, at their ends."""
        ys = run(field, y0, GRID, "dopri5", FIXED, grid=GRID).ys
        return (ys[[0, 2, 5, 7]] * of_ys[:4]).sum().item()

    upstream = torch.zeros(len(GRID), 3, 2, dtype=torch.float64)
    upstream[[0, 2, 5, 7]] = of_ys[:4]
    kept = run(field, y0, GRID, "dopri5", FIXED, grid=GRID, keep=True).kept
    found = back(field, upstream, GRID, kept, GRID, "dopri5", FIXED)
    _, parameters, *_ = flat(field)
    for tensor, gradient in zip((y0, *parameters), (found.y0, *found.parameters), strict=True):
        numbers = tensor.detach().view(-1)
        for i in range(0, numbers.numel(), 3):
            kept_value, sides = numbers[i].item(), []
            for change in (1e-6, -1e-6):
                numbers[i] = kept_value + change
                sides.append(value())
            numbers[i] = kept_value
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(
                gradient.reshape(-1)[i].item(), rel=1e-6, abs=1e-7
            )


def samples_by_cpu(field, of_ys, times, method, found):
    """Gradients of y0 and the parameters from what the kernels kept of a solve by sample."""
    layers, activation = field.perceptron()
    batch = of_ys.shape[1]
    taken = [counts[0] for counts in found.counts]
    kept = torch.cat([found.kept[:n, :, b] for b, n in enumerate(taken)])
    ts = times.expand(batch, of_ys.shape[0]).contiguous()
    return extension.native().mlp_solve_samples_backward(
        [(w.detach(), b.detach(), column) for w, b, column in layers],
        activation,
        of_ys,
        ts,
        torch.sign(ts[:, -1] - ts[:, 0]),
        native.compiled(METHODS[method]),
        torch.tensor(taken),
        torch.cat([found.steps("ends", b) for b in range(batch)]),
        kept,
        True,
        fused_request.INSTRUCTIONS,
    )


def check_samples(field, y0, times, method="dopri5", **options):
    options = {"rtol": 1e-3, "atol": 1e-3, "keep": True, **options}
    found = run(field, y0, times, method, PER_SAMPLE, **options)
    of_ys = random(times.shape[-1], *y0.shape, seed=2)
    ends = [found.steps("ends", b) for b in range(len(y0))]
    ours = back(field, of_ys, times, found.kept, ends, method, PER_SAMPLE)
    by_y0, by_parameters = samples_by_cpu(field, of_ys, times, method, found)
    for a, b in zip((ours.y0, *ours.parameters), (by_y0, *by_parameters), strict=True):
        close(a, b, 1e-10)
    return found, ours


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
@pytest.mark.parametrize("batch", [3, 50])
def test_gradients_of_samples_with_steps_of_their_own(batch, method):
    y0 = random(batch, 3) * torch.linspace(0.1, 3, batch).double()[:, None]
    times, tight = torch.tensor(TIMES, dtype=torch.float64), {"rtol": 1e-7, "atol": 1e-8}
    found, _ = check_samples(make(), y0, times, method, **tight)
    assert len({counts[0] for counts in found.counts}) > 1


def test_thread_per_sample_gradients_after_interruptions():
    times = torch.tensor(TIMES[:3], dtype=torch.float64)
    found, _ = check_samples(make(2, 5), 2 * random(1100, 2), times, capacity=1)
    assert found.plan[3] == 1 and found.launches > 1


def test_per_sample_gradients_with_mixed_directions():
    field, y0 = make(activation="relu"), random(12, 3)
    y0[3, 0] = torch.nan
    times = torch.tensor(TIMES, dtype=torch.float64) * torch.linspace(-1, 1, 12)[:, None].double()
    found, ours = check_samples(field, y0, times, max_num_steps=3, rtol=1e-6)
    assert any(counts[3] for counts in found.counts) and found.counts[3][0] == 0
    assert ours.y0.isfinite().all()


@pytest.mark.parametrize("kind", [JOINT, FIXED])
def test_weights_in_device_memory(kind):
    found = check(make(24, (200, 250), None, time="none"), random(11, 24), kind=kind)
    assert found.plan[5] == 1

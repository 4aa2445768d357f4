from __future__ import annotations

import copy

import pytest
import torch

from fastnode import extension
from fastnode.ops.rk_error import rk_error
from fastnode.ops.rk_rows import (
    rk_dense_rows,
    rk_dense_rows_reference,
    rk_error_rows,
    rk_error_rows_reference,
    rk_stage_rows,
    rk_stage_rows_reference,
)
from fastnode.ops.rk_stage import rk_stage

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (300, 2), (63, 7), (1, 1023), (3, 5, 7), (3, 513), (2, 40000), (0, 4), (3, 0)]
SHAPES += [(1030,)]
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")
C = [0.3, -0.15, 0.1, -0.075]


class Inputs:
    """Two states, four stages, and steps, tolerances and weights of each row."""

    def __init__(self, shape, dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.y0, self.y1, *self.k = (normal(*shape).to(dtype) for _ in range(len(C) + 2))
        self.h = normal(shape[0])
        self.rtol = 0.01 + 0.01 * normal(shape[0]).abs()
        self.atol = 0.001 + 0.001 * normal(shape[0]).abs()
        self.w = normal(shape[0], len(C))

    def replaced(self, **values):
        other = copy.copy(self)
        other.__dict__.update(values)
        return other

    def wide(self):
        k = [x.double() for x in self.k]
        return self.replaced(y0=self.y0.double(), y1=self.y1.double(), k=k)

    def column(self, x):
        return x.to(self.y0.dtype).view(-1, *(1,) * (self.y0.dim() - 1))

    def stage(self, implementation=rk_stage_rows):
        return implementation(self.y0, self.k, C, self.h)

    def error(self, implementation=rk_error_rows):
        return implementation(self.y0, self.y1, self.k, C, self.h, self.rtol, self.atol)

    def dense(self, implementation=rk_dense_rows):
        return implementation(self.y0, self.k, self.w)


def within_twice(result, plain, wanted, dtype):
    error = (result.double() - wanted).abs().max()
    allowed = 2 * (plain.double() - wanted).abs().max()
    # For float64 what is wanted has a rounding of its own.
    return error <= allowed + 2 * torch.finfo(dtype).eps * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_have_at_most_twice_the_error_of_plain_torch(shape, dtype):
    inputs = Inputs(shape, dtype)
    total, dense = torch.zeros_like(inputs.y0), inputs.y0
    for j, derivative in enumerate(inputs.k):
        total = total + C[j] * derivative
        dense = dense + inputs.column(inputs.w[:, j]) * derivative
    stage = inputs.y0 + inputs.column(inputs.h) * total
    for result, plain, wanted in [
        (inputs.stage(), stage, inputs.wide().stage(rk_stage_rows_reference)),
        (inputs.dense(), dense, inputs.wide().dense(rk_dense_rows_reference)),
    ]:
        assert result.dtype == dtype and result.shape == shape
        if inputs.y0.numel():
            assert within_twice(result, plain, wanted, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_agree_with_the_reference_in_float64(shape, dtype):
    inputs = Inputs(shape, dtype)
    result, wanted = inputs.error(), inputs.wide().error(rk_error_rows_reference)
    assert result.shape == shape[:1]
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = 1e-12 if dtype == torch.float64 else 3e-6
    room = rtol * float(wanted.max()) if shape[0] else 0
    torch.testing.assert_close(result.double(), wanted, rtol=rtol, atol=room)
    if inputs.y0.numel():
        ratio = inputs.column(inputs.h) * sum(w * x for w, x in zip(C, inputs.k, strict=True))
        size = torch.maximum(inputs.y0.abs(), inputs.y1.abs())
        ratio = ratio / (inputs.column(inputs.atol) + inputs.column(inputs.rtol) * size)
        plain = ratio.view(shape[0], -1).square().mean(1).sqrt()
        assert within_twice(result, plain, wanted, result.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_sample_is_a_solve_of_its_own(dtype):
    inputs = Inputs((9, 700), dtype)
    rows = zip(inputs.stage(), inputs.error(), inputs.dense(), strict=True)
    for b, (stage, error, dense) in enumerate(rows):
        h, k = float(inputs.h[b]), [x[b] for x in inputs.k]
        tolerances = float(inputs.rtol[b]), float(inputs.atol[b])
        assert torch.equal(dense, rk_stage(inputs.y0[b], k, inputs.w[b].tolist()))
        weights = [h * c for c in C]
        torch.testing.assert_close(stage, rk_stage(inputs.y0[b], k, weights))
        single = rk_error(inputs.y0[b], inputs.y1[b], k, weights, *tolerances)
        torch.testing.assert_close(error, single)


def test_other_samples_do_not_change_a_result():
    inputs = Inputs((40, 33), torch.float32)
    for make in (Inputs.stage, Inputs.error, Inputs.dense):
        whole = make(inputs)
        for part in (slice(0, 1), slice(7, 8), slice(13, 40)):
            names = ("y0", "y1", "h", "rtol", "atol", "w")
            rows = {name: getattr(inputs, name)[part] for name in names}
            some = inputs.replaced(k=[x[part] for x in inputs.k], **rows)
            assert torch.equal(make(some), whole[part])


def test_a_bad_sample_stays_alone():
    inputs = Inputs((5, 3), torch.float32)
    inputs.k[1][2, 1] = torch.nan
    assert inputs.stage().isnan().any(1).tolist() == [False, False, True, False, False]
    assert inputs.error().isnan().tolist() == [False, False, True, False, False]
    assert inputs.dense().isnan().any(1).tolist() == [False, False, True, False, False]


def test_result_does_not_depend_on_the_number_of_threads():
    inputs = Inputs((301, 700), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((inputs.stage(), inputs.error(), inputs.dense()))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


def test_views_with_offset_and_strides_are_read_right():
    inputs = Inputs((17, 33), torch.float32)
    wanted = inputs.stage(), inputs.error(), inputs.dense()
    inputs.y0 = inputs.y0.t().contiguous().t()
    inputs.k[0] = torch.cat([torch.zeros(1), inputs.k[0].flatten()])[1:].view(17, 33)
    inputs.h = torch.stack([inputs.h, inputs.h], 1)[:, 0]
    inputs.w = inputs.w.t().contiguous().t()
    results = inputs.stage(), inputs.error(), inputs.dense()
    assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))


@pytest.mark.parametrize("implementation", [rk_error_rows, rk_error_rows_reference])
def test_tolerances_may_be_numbers(implementation):
    inputs = Inputs((4, 3))
    inputs.rtol, inputs.atol = torch.full((4,), 0.25).double(), torch.full((4,), 0.5).double()
    wanted = inputs.error(implementation)
    inputs.rtol, inputs.atol = 0.25, torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(inputs.error(implementation), wanted)


def test_no_stage_and_no_step():
    inputs = Inputs((4, 3), torch.float32)
    assert torch.equal(rk_stage_rows(inputs.y0, [], [], inputs.h), inputs.y0)
    assert torch.equal(rk_stage_rows(inputs.y0, inputs.k, C, 0 * inputs.h), inputs.y0)
    dense = rk_dense_rows(inputs.y0, [], inputs.w[:, :0])
    assert torch.equal(dense, inputs.y0)
    assert not extension.AVAILABLE or dense.data_ptr() != inputs.y0.data_ptr()


def functions(inputs):
    h, rtol, atol, w = inputs.h, 10 * inputs.rtol, 10 * inputs.atol, inputs.w
    return [
        lambda y0, y1, *k: rk_stage_rows(y0, k, C, h).square(),
        lambda y0, y1, *k: rk_error_rows(y0, y1, k, C, h, rtol, atol),
        lambda y0, y1, *k: rk_dense_rows(y0, k, w).square(),
    ]


def test_first_and_second_derivatives():
    inputs = Inputs((2, 3))
    variables = [x.requires_grad_() for x in (inputs.y0, inputs.y1, *inputs.k)]
    for function in functions(inputs):
        assert torch.autograd.gradcheck(function, variables)
        assert torch.autograd.gradgradcheck(function, variables)


def test_gradients_in_16_bits_have_the_inputs_dtype():
    inputs = Inputs((2, 3), torch.bfloat16)
    variables = [x.requires_grad_() for x in (inputs.y0, inputs.y1, *inputs.k)]
    for function in functions(inputs):
        result = function(*variables).sum()
        gradients = torch.autograd.grad(result, variables, allow_unused=True)
        assert {g.dtype for g in gradients if g is not None} == {torch.bfloat16}


def test_numbers_of_rows_get_gradients():
    inputs = Inputs((2, 3))
    for name, make in [
        ("h", Inputs.stage),
        ("h", Inputs.error),
        ("atol", Inputs.error),
        ("w", Inputs.dense),
    ]:
        x = getattr(inputs, name).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(make(inputs.replaced(**{name: x})).sum(), x)
        assert gradient.abs().min() > 0


def test_inside_torch_func_transforms():
    inputs = Inputs((4, 3))
    single = lambda y, h, *k: rk_stage_rows(y[None], [x[None] for x in k], C, h)  # noqa: E731
    result = torch.func.vmap(single)(inputs.y0, inputs.h[:, None], *inputs.k)
    torch.testing.assert_close(result[:, 0], inputs.stage())


@compiled
def test_opcheck():
    inputs = Inputs((3, 5), torch.float32)
    ops = torch.ops.fastnode
    for requires_grad in (False, True):
        tensors = (inputs.y0, inputs.y1, *inputs.k)
        a, b, *k = (x.clone().requires_grad_(requires_grad) for x in tensors)
        numbers = (inputs.h, inputs.rtol, inputs.atol)
        torch.library.opcheck(ops.rk_stage_rows.default, (a, k, C, inputs.h))
        torch.library.opcheck(ops.rk_error_rows.default, (a, b, k, C, *numbers))
        torch.library.opcheck(ops.rk_dense_rows.default, (a, k, inputs.w))


def test_compiles_without_graph_breaks():
    inputs = Inputs((3, 5), torch.float32)
    variables = [x.requires_grad_() for x in (inputs.y0, inputs.y1, *inputs.k)]
    for function in functions(inputs):
        result = torch.compile(function, fullgraph=True, backend="aot_eager")(*variables)
        torch.testing.assert_close(result, function(*variables))
        ours, plain = (
            torch.autograd.grad(x.sum(), variables[2:]) for x in (result, function(*variables))
        )
        torch.testing.assert_close(ours, plain)


def test_complex_states():
    inputs = Inputs((3, 5))
    inputs.k = [torch.complex(x, 2 * x) for x in inputs.k]
    inputs.y0 = inputs.y1 = torch.complex(inputs.y0, inputs.y1)
    for made in (inputs.stage(), inputs.dense()):
        assert made.dtype == torch.complex128
    assert inputs.error().dtype == torch.float64


@pytest.mark.parametrize(
    ("stage", "error", "dense"),
    [
        (rk_stage_rows, rk_error_rows, rk_dense_rows),
        (rk_stage_rows_reference, rk_error_rows_reference, rk_dense_rows_reference),
    ],
)
def test_bad_input_is_named(stage, error, dense):
    y, h = torch.zeros(3, 2), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\[B, ...\], got a scalar"):
        stage(y[0, 0], [y[0, 0]], [1.0], h)
    with pytest.raises(ValueError, match="h must have shape"):
        stage(y, [y], [1.0], h[:2])
    with pytest.raises(TypeError, match="h must be float64"):
        error(y, y, [y], [1.0], h.float(), 0.1, 0.1)
    with pytest.raises(ValueError, match="rtol must have shape"):
        error(y, y, [y], [1.0], h, h[:2], 0.1)
    with pytest.raises(TypeError, match="each of k"):
        dense(y, [y.double()], h.view(3, 1))
    with pytest.raises(ValueError, match="w must have shape"):
        dense(y, [y], h)

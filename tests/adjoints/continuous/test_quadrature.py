from __future__ import annotations

import pytest
import torch

from fastnode import extension
from fastnode.adjoints.continuous.quadrature import Quadrature, add_stage_reference
from fastnode.tableaus import METHODS

SHAPES = [(), (3,), (2, 5), (0,), (129, 257)]
needs_extension = pytest.mark.skipif(not extension.AVAILABLE, reason="the extension is not built")


def tensors(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in SHAPES]


@needs_extension
@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernel_adds_what_the_reference_adds(dtype, with_errors):
    totals = tensors(dtype, 0)
    results = []
    for add in (add_stage_reference, extension.native().add_stage):
        trial = [torch.full_like(total, torch.nan) for total in totals]
        errors = [torch.full_like(total, torch.nan) for total in totals] if with_errors else []
        for stage, (b, e) in enumerate([(0.5, 0.1), (0.0, 0.3), (-0.25, 0.0)]):
            terms: list = tensors(dtype, 1 + stage)
            terms[1] = None
            terms[2] = terms[2].t().contiguous().t()
            terms[4] = terms[4][:1].expand(129, 257)
            add(totals, trial, errors, terms, b, e, stage == 0)
        results.append((trial, errors))
    torch.testing.assert_close(*results)
    assert torch.equal(results[1][0][1], totals[1])


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_error_is_that_of_the_reference(dtype, monkeypatch):
    def measured():
        quadrature = Quadrature(tensors(dtype, 0))
        quadrature.follow(METHODS["bosh3"], errors=True)
        quadrature.evaluated(tensors(dtype, 1))
        quadrature.begin(0.1)
        for stage in range(1, 4):
            quadrature.evaluated(tensors(dtype, 1 + stage))
        count = len(SHAPES)
        return quadrature.error_norm([1e-3] * count, [1e-4] * count)

    fast = measured()
    monkeypatch.setattr("fastnode.extension.AVAILABLE", False)
    assert fast == pytest.approx(measured(), rel=1e-5)


def test_a_step_that_is_not_accepted_changes_nothing():
    quadrature = Quadrature([torch.zeros(2)])
    quadrature.follow(METHODS["dopri5"], errors=True)
    quadrature.evaluated([torch.ones(2)])
    for h, accepted in ((5.0, False), (1.0, True), (7.0, False), (0.5, True)):
        quadrature.begin(h)
        for _ in range(6):
            wanted = quadrature.wants()
            quadrature.evaluated([torch.ones(2)] if wanted else ())
        if accepted:
            quadrature.accept()
    # The weights of a step sum to one.
    torch.testing.assert_close(quadrature.totals, [torch.full((2,), 1.5)])


def test_after_a_jump_the_first_stage_is_the_one_evaluated_last():
    quadrature = Quadrature([torch.zeros(1)])
    quadrature.follow(METHODS["dopri5"], errors=False)
    quadrature.evaluated([torch.zeros(1)])
    quadrature.begin(1.0)
    for _ in range(6):
        quadrature.evaluated([torch.zeros(1)] if quadrature.wants() else ())
    quadrature.accept()
    assert quadrature.wants()
    quadrature.evaluated([torch.ones(1)])
    quadrature.begin(1.0)
    for _ in range(6):
        quadrature.evaluated([torch.zeros(1)] if quadrature.wants() else ())
    quadrature.accept()
    torch.testing.assert_close(quadrature.totals, [torch.full((1,), 35 / 384)])

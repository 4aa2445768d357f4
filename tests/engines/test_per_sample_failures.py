from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.extension import AVAILABLE

ENGINES = ["reference", "native"] if AVAILABLE else ["reference"]


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
class TestErrors:
    @pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity")])
    def test_a_field_that_is_not_finite_for_one_sample_names_it(self, engine, value, word):
        def field(t, y, bad):
            late = (t > 0.5) & bad
            return torch.where(late[:, None], value, -y)

        y0, bad = torch.ones(4, 2, dtype=torch.float64), torch.tensor([False, False, True, False])
        with pytest.raises(
            fastnode.NonFiniteState, match=f"returned {word}.*sample 2 at"
        ) as caught:
            fastnode.solve(field, y0, times(0, 1), args=(bad,), per_sample=True, engine=engine)
        assert caught.value.samples == (2,) and caught.value.time == pytest.approx(0.5)
        assert 0 < caught.value.step < 1e-12

        ts = times(0, 0.4, 1)
        found = fastnode.solve(
            field, y0, ts, args=(bad,), per_sample=True, engine=engine, throw=False
        )
        assert found.status == ["finished", "finished", "NonFiniteState", "finished"]
        assert bool(found.ys[2, 2].isnan().all()) and bool(found.ys[:2].isfinite().all())
        wanted = torch.exp(-ts)[:, None].expand(3, 2)
        torch.testing.assert_close(found.ys[:, 3], wanted, rtol=1e-3, atol=1e-3)
        assert found.steps[2].times[-1] == pytest.approx(0.5)

    def test_states_that_are_not_finite_at_once(self, engine):
        y0 = torch.ones(4, 1, dtype=torch.float64)
        y0[1], y0[3] = math.nan, math.inf
        with pytest.raises(
            fastnode.NonFiniteState, match="sample 1 at t = 0 .*, sample 3"
        ) as caught:
            fastnode.solve(lambda t, y: y, y0, times(0, 1), per_sample=True, engine=engine)
        assert caught.value.samples == (1, 3)
        found = fastnode.solve(
            lambda t, y: y, y0, times(0, 1), per_sample=True, engine=engine, throw=False
        )
        assert found.status[::2] == ["finished"] * 2 and bool(found.ys[1, ::2].isfinite().all())

    def test_singularities_and_step_limits_name_the_samples(self, engine):
        y0 = torch.arange(12.0, dtype=torch.float64)[:, None] / 10
        with pytest.raises(fastnode.StepSizeUnderflow, match="sample 11 at t = 0.909") as caught:
            fastnode.solve(lambda t, y: y * y, y0, times(0, 0.95), per_sample=True, engine=engine)
        assert caught.value.samples == (11,)
        with pytest.raises(fastnode.MaxStepsExceeded, match="1 steps tried: .* and 4 more"):
            fastnode.solve(
                lambda t, y: -y,
                y0,
                times(0, 5),
                per_sample=True,
                engine=engine,
                max_num_steps=1,
                first_step=0.1,
            )

    def test_rows_of_finished_samples_are_refused(self, engine):
        y0, spans = torch.ones(2, 1, dtype=torch.float64), times(0, 0.1, 0, 9).reshape(2, 2)
        with pytest.raises(ValueError, match="sees only the samples that still run"):
            fastnode.solve(lambda t, y: -y0, y0, spans, per_sample=True, engine=engine, rtol=1e-8)

    def test_exceptions_of_the_field_arrive_unchanged(self, engine):
        class Odd(Exception):
            pass

        def field(t, y):
            raise Odd

        with pytest.raises(Odd):
            fastnode.solve(field, torch.ones(2, 1), times(0, 1), per_sample=True, engine=engine)

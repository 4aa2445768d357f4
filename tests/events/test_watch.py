from __future__ import annotations

import math

import pytest
import torch

import fastnode


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestEvents:
    """A ball thrown up at speed 10: height 10 t - t^2 g / 2, back at t = 20 / g."""

    g = 9.81

    def field(self, t, y):
        return torch.stack((y[1], torch.full_like(y[1], -self.g)))

    def solve(self, events, t=(0, 1, 2, 3), **arguments):
        y0 = times(0, 10)
        return fastnode.solve(
            self.field, y0, times(*t), events=events, rtol=1e-8, atol=1e-8, **arguments
        )

    @pytest.mark.parametrize("method", ["tsit5", "dopri8", "rk4"])
    def test_a_terminal_event_ends_the_solve(self, method):
        fixed = {"steps": 40} if method == "rk4" else {}
        found = self.solve(lambda t, y: y[0], save="dense", method=method, **fixed)
        assert found.status == "event"
        (record,) = found.events
        end = 20 / self.g
        torch.testing.assert_close(record.times, times(end))
        torch.testing.assert_close(record.states, times(0, -10)[None], atol=1e-6, rtol=1e-6)
        assert bool(found.ys[:3].isfinite().all()) and bool(found.ys[3].isnan().all())
        torch.testing.assert_close(found.evaluate(end - 1e-6)[1].item(), -10.0, rtol=1e-5, atol=0.0)
        with pytest.raises(ValueError, match="t must lie in"):
            found.evaluate(end + 1e-3)

    def test_events_that_do_not_end_the_solve_are_all_noted(self):
        wave = fastnode.Event(lambda t, y: torch.sin(4 * t + 1), terminal=False)
        rising = fastnode.Event(lambda t, y: torch.sin(4 * t + 1), False, 1)
        falling = fastnode.Event(lambda t, y: torch.sin(4 * t + 1), False, -1)
        never = fastnode.Event(lambda t, y: y[0] + 100)
        found = self.solve([wave, rising, falling, never], max_step=0.3)
        roots = (torch.arange(1, 5) * math.pi - 1) / 4
        assert found.status == "finished"
        for record, wanted in zip(
            found.events, (roots, roots[1::2], roots[::2], roots[:0]), strict=True
        ):
            torch.testing.assert_close(record.times, wanted.double())
            torch.testing.assert_close(
                record.states[:, 0], 10 * record.times - self.g / 2 * record.times**2
            )

    def test_the_first_of_several_events_ends_the_solve(self):
        late = fastnode.Event(lambda t, y: t - 1.6)
        early = fastnode.Event(lambda t, y: t - 1.5)
        after = fastnode.Event(lambda t, y: t - 1.55, terminal=False)
        before = fastnode.Event(lambda t, y: t - 1.45, terminal=False)
        found = self.solve([late, early, after, before])
        assert [len(record.times) for record in found.events] == [0, 1, 0, 1]

    def test_times_of_events_have_gradients(self):
        speed = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
        y0 = torch.stack((torch.zeros_like(speed), speed))
        found = fastnode.solve(
            self.field, y0, times(0, 5), events=fastnode.Event(lambda t, y: y[0], direction=-1)
        )
        (by_speed,) = torch.autograd.grad(found.events[0].times[0], speed)
        assert by_speed.item() == pytest.approx(2 / self.g, rel=1e-4)

    def test_bad_events_are_named(self):
        with pytest.raises(TypeError, match="an event's fn must be callable, got int"):
            self.solve(3)
        with pytest.raises(ValueError, match="direction must be -1, 0 or 1, got 2"):
            fastnode.Event(len, direction=2)
        with pytest.raises(ValueError, match="events must be None with per_sample=True"):
            self.solve(lambda t, y: y[0], per_sample=True)

import math

import pytest
import torch
from torch import nn

from fastnode.nn import EncodedODE
from fastnode.training.evaluation import DOPRI5, SOLVERS, evaluate, predict


class Growth(nn.Module):
    """dz/dt = z, whose Euler solution after n steps is (1 + 1/n)^n z."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, t, z):
        return z


def make_model(decoder=None):
    return EncodedODE(nn.Identity(), Growth(), decoder or nn.Identity())


def test_rmse_is_in_original_units_and_every_solver_is_counted(run_parts, changed):
    _, data, _ = run_parts("regression", "simfree")
    x = torch.ones(2500, 1)
    data = changed(data, x_test=x, y_test=math.e * x, y_std=3.0)
    results = evaluate(make_model(), data)
    rows = results["solvers"]
    assert list(rows) == ["euler-1", "euler-2", "euler-10", "euler-20", "dopri5"]
    for steps in (1, 2, 10, 20):
        row = rows[f"euler-{steps}"]
        assert row["nfe"] == steps
        assert row["rmse"] == pytest.approx(3 * (math.e - (1 + 1 / steps) ** steps), rel=1e-3)
    assert rows["dopri5"]["rmse"] < 0.01 and rows["dopri5"]["nfe"] >= 7
    assert "disagreement" not in results


def test_disagreement_is_the_share_of_samples_that_change_class(run_parts, changed):
    _, data, _ = run_parts("classification", "simfree")

    class Threshold(nn.Module):
        """Class 1 above 2.5: one Euler step doubles, the exact solution multiplies by e."""

        def forward(self, z):
            return torch.cat([torch.zeros_like(z), z - 2.5, z - 100], 1)

    x = torch.tensor([[0.5], [1.0], [1.1], [2.0]])
    data = changed(data, x_test=x, y_test=torch.tensor([0, 1, 0, 1]))
    results = evaluate(make_model(Threshold()), data)
    assert results["solvers"]["euler-1"]["accuracy"] == 0.75
    assert results["solvers"]["dopri5"]["accuracy"] == 0.75
    assert results["disagreement"] == 0.5


def test_predict_runs_in_eval_mode_and_restores_it():
    model = EncodedODE(nn.Dropout(0.9), Growth(), nn.Identity()).train()
    outputs, nfe = predict(model, torch.ones(3000, 2), DOPRI5)
    assert outputs.shape == (3000, 2) and not outputs.requires_grad
    assert (outputs - math.e).abs().max() < 0.01 and nfe >= 7
    assert model.training


def test_solver_names_are_unique():
    assert len({solver.name for solver in SOLVERS}) == len(SOLVERS)

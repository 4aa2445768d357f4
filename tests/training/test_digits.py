import pytest

from fastnode.datasets import load
from fastnode.training import Config, Trainer, recipe_for


@pytest.mark.slow
def test_the_digits_recipe_learns_in_its_steps(tmp_path):
    pytest.importorskip("sklearn")
    data = load("digits")
    recipe = recipe_for(data)
    config = Config("digits", "simfree", recipe.steps, recipe.batch, recipe.lr, 50)
    results = Trainer(config, data, recipe, tmp_path).run()
    assert results is not None and recipe.steps <= 1000
    assert results["solvers"]["euler-1"]["accuracy"] > 0.97
    assert results["disagreement"] < 0.02

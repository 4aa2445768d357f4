from __future__ import annotations

import pytest
import torch

from fastnode.nn.recipe_book import recipe


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mnist", (784,)),
        ("mnist-small", (784,)),
        ("cifar10-small", (3, 32, 32)),
    ],
)
def test_image_recipes_take_images_and_print_settings(name, shape):
    model = recipe(name).build_simfree(path="concave", label_noise=0.5)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    words = repr(model)
    assert "label_noise=0.5" in words and "zero_probability=0.1" in words and "rtol=" in words

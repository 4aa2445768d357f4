"""Ready networks and hyper-parameters, by data set and by publication.

``mnist``, ``cifar10`` and ``uci`` are those of Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918,
appendix and released configurations; digits follows MNIST in small. ``mnist-ode``, ``cifar10-ode``
and ``physionet`` are those of Pal, Edelman, Rackauckas, ICML 2023, arXiv 2303.02262, where the
state is the image or that of a latent ODE; ``spiral`` is that of Chen et al., NeurIPS 2018, arXiv
1806.07366. Recipes that end in ``-small`` have the same form at a size for a CPU, except that the
field of ``cifar10-small`` is dense. ``table`` is for rows of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fastnode.nn import recipe_nets
from fastnode.nn.fields import check_positive
from fastnode.nn.recipe_nets import Nets
from fastnode.nn.recipes import Recipe


def recipe(name: str, in_features: int | None = None, num_classes: int | None = None) -> Recipe:
    """The recipe of a name.

    Args:
        name: ``digits``, ``mnist``, ``mnist-small``, ``mnist-ode``, ``cifar10``,
            ``cifar10-small``, ``cifar10-ode``, ``cifar10-ode-small``; ``physionet``, at common
            times, or ``physionet-own``, each series at its own, and both with ``-small``;
            ``spiral``; a regression set: ``uci``, ``uci/<set>``, ``diabetes``; or ``table``.
        in_features: number of inputs of a regression set or a table; the others know theirs.
        num_classes: of a table, for classification; None for regression and for all others.

    Raises:
        ValueError: unknown name, or ``in_features`` or ``num_classes`` missing or not those of the
            data set.
        TypeError: ``in_features`` or ``num_classes`` is no integer.
    """
    if num_classes is not None:
        if name != "table":
            raise ValueError(f"the recipe {name!r} takes no num_classes, got {num_classes}")
        check_positive(num_classes=num_classes)
    if name in ("uci", "diabetes", "table") or name.startswith("uci/"):
        if in_features is None:
            raise ValueError(f"the recipe {name!r} needs in_features, the number of inputs")
        check_positive(in_features=in_features)
        if name == "table":
            return _table(in_features, num_classes)
        return _regression(name, in_features)
    if name in _SERIES:
        return _SERIES[name]()
    if name not in _CLASSIFICATION:
        known = ", ".join([*_CLASSIFICATION, *_SERIES, "uci", "uci/<set>", "diabetes", "table"])
        raise ValueError(f"unknown recipe {name!r}, expected one of {known}")
    make, inputs = _CLASSIFICATION[name]
    if in_features not in (None, inputs):
        raise ValueError(
            f"the recipe {name!r} takes {inputs} inputs, got in_features={in_features}"
        )
    return replace(make(name), inputs=inputs)


def data_of(name: str) -> str:
    """The data set that a recipe is for."""
    return name.split("-")[0]


def _flow(
    name: str, make_nets: Callable[[], Nets], noise: float, lr: float, steps: int, batch: int
) -> Recipe:
    """Classification without simulation."""
    return Recipe(
        name=name,
        task="classification",
        num_classes=10,
        label_noise=noise,
        lr=lr,
        steps=steps,
        batch=batch,
        make_nets=make_nets,
        schedule="none" if name == "mnist" else "cosine",
    )


def _digits(name: str) -> Recipe:
    # Measured on a fifth of the rows for training, by one Euler step: with the noise of MNIST, 3,
    # 21 % are right after 300 steps; with 1 there are 98 %, and 99 % after 600.
    return _flow(name, partial(recipe_nets.dense_nets, 64, 128, 512, 10), 1.0, 3e-3, 600, 128)


def _mnist(name: str) -> Recipe:
    nets = partial(recipe_nets.dense_nets, 784, 784, 2048, 10)
    return _flow(name, nets, 3.0, 1e-4, 500_000, 1024)


def _mnist_small(name: str) -> Recipe:
    return _flow(name, partial(recipe_nets.dense_nets, 784, 256, 512, 10), 3.0, 1e-3, 6000, 256)


def _cifar10(name: str) -> Recipe:
    return _flow(name, recipe_nets.image_nets, 10.0, 3e-4, 100_000, 1024)


def _cifar10_small(name: str) -> Recipe:
    nets = partial(recipe_nets.small_image_nets, 128, 512, 48, 10)
    return _flow(name, nets, 1.0, 1e-3, 12_000, 128)


def _mnist_ode(name: str) -> Recipe:
    return Recipe(
        name=name,
        task="classification",
        num_classes=10,
        lr=1e-3,
        steps=7500,
        batch=512,
        make_nets=partial(recipe_nets.image_ode_nets, 784, 100, 10),
        clip_node=None,
        method="tsit5",
        tolerance=1.4e-8,
    )


def _cifar10_ode(name: str) -> Recipe:
    small = name.endswith("small")
    return Recipe(
        name=name,
        task="classification",
        num_classes=10,
        lr=3e-3,
        lr_end=1e-4,
        schedule="cosine",
        steps=300 if small else 31_250,
        batch=16 if small else 32,
        make_nets=partial(recipe_nets.image_channels_nets, 8, 8 if small else 64, 32, 10),
        clip_node=None,
        method="tsit5",
        tolerance=1e-4,
    )


def _physionet(name: str) -> Recipe:
    small = name.endswith("small")
    sizes = (8, 24, 24) if small else (20, 40, 50)
    return Recipe(
        name=name,
        task="interpolation",
        num_classes=None,
        lr=1e-2,
        schedule="inverse",
        optimizer="adamax",
        steps=300 if small else 3000,
        batch=64 if small else 512,
        make_nets=partial(recipe_nets.latent_nets, 41, *sizes),
        clip_node=None,
        method="tsit5",
        tolerance=1.4e-8,
        times=49,
        own_times="own" in name.split("-"),
        spread=0.01,
    )


def _spiral(name: str) -> Recipe:
    return Recipe(
        name=name,
        task="interpolation",
        num_classes=None,
        lr=1e-2,
        steps=1000,
        batch=64,
        make_nets=partial(recipe_nets.spiral_nets, 50),
        clip_node=None,
        method="tsit5",
        tolerance=1e-6,
        times=25,
    )


def _regression(name: str, in_features: int) -> Recipe:
    return Recipe(
        name=name,
        task="regression",
        num_classes=None,
        label_noise=3.0,
        lr=3e-3,
        steps=500_000,
        batch=64,
        make_nets=partial(recipe_nets.table_nets, in_features, latent=64, hidden=64),
        clip_simfree=1.0,
        patience=100,
    )


def _table(in_features: int, num_classes: int | None) -> Recipe:
    """As for UCI sets, with a bound on the steps that a first try may take."""
    made = replace(_regression("table", in_features), steps=10_000, patience=40)
    if num_classes is None:
        return made
    return replace(
        made,
        task="classification",
        num_classes=num_classes,
        inputs=in_features,
        # As for digits.
        label_noise=1.0,
        make_nets=partial(recipe_nets.table_nets, in_features, 64, 64, num_classes),
    )


#: How a recipe is made of its name, and the number of inputs.
_CLASSIFICATION: dict[str, tuple[Callable[[str], Recipe], int]] = {
    "digits": (_digits, 64),
    "mnist": (_mnist, 784),
    "mnist-small": (_mnist_small, 784),
    "mnist-ode": (_mnist_ode, 784),
    "cifar10": (_cifar10, 3072),
    "cifar10-small": (_cifar10_small, 3072),
    "cifar10-ode": (_cifar10_ode, 3072),
    "cifar10-ode-small": (_cifar10_ode, 3072),
}
_SERIES: dict[str, Callable[[], Recipe]] = {
    name: partial(_physionet, name)
    for name in ("physionet", "physionet-small", "physionet-own", "physionet-own-small")
} | {"spiral": partial(_spiral, "spiral")}

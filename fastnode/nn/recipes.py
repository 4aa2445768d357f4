"""Ready networks and hyper-parameters for the data sets that the simulation-free paper trains on.

MNIST, CIFAR10 and UCI are those of Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918, appendix and
released configurations; digits follows MNIST in small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from fastnode.flow import Path
from fastnode.nn.fields import ConvField, MLPField, check_positive
from fastnode.nn.node import EncodedODE
from fastnode.nn.simfree import SimulationFreeNODE
from fastnode.regularize import Regularizer


class Nets(NamedTuple):
    """The four networks of a model, freshly initialised."""

    encoder: nn.Module
    label_encoder: nn.Module
    decoder: nn.Module
    field: nn.Module


@dataclass(frozen=True)
class Recipe:
    """Networks and hyper-parameters for a data set.

    Attributes:
        name: the data set's name.
        task: whether targets are class numbers [B] or standardised rows [B, 1].
        num_classes: number of classes; None for regression.
        label_noise: noise on the label's embedding, for simulation-free training.
        lr: learning rate of AdamW without weight decay.
        schedule: ``none``, or ``cosine`` from ``lr`` to 0 over ``steps``.
        steps: training steps, at most.
        batch: samples in a step.
        clip_simfree, clip_node: largest gradient norm, by how the model is trained; None: no bound.
        patience: validations without improvement until training stops early; None: never.
        make_nets: makes the four networks.
    """

    name: str
    task: Literal["classification", "regression"]
    num_classes: int | None
    label_noise: float
    lr: float
    schedule: Literal["none", "cosine"]
    steps: int
    batch: int
    make_nets: Callable[[], Nets] = field(repr=False)
    clip_simfree: float | None = None
    clip_node: float | None = 1.0
    patience: int | None = None

    def build_simfree(
        self, path: str | Path = "linear", zero_probability: float = 0.1
    ) -> SimulationFreeNODE:
        """A new model for training without simulation: ``model.loss(x, y).total``."""
        nets = self.make_nets()
        return SimulationFreeNODE(
            *nets,
            path=path,
            label_noise=self.label_noise,
            zero_probability=zero_probability,
            num_classes=self.num_classes,
        )

    def build_node(
        self, rtol: float = 1e-3, atol: float = 1e-3, regularizer: Regularizer | None = None
    ) -> EncodedODE:
        """A new model of the same networks for training through the solver (dopri5).

        ``model(x)`` gives logits for the cross-entropy, or values for the mean squared error.
        """
        nets = self.make_nets()
        return EncodedODE(
            nets.encoder,
            nets.field,
            nets.decoder,
            "dopri5",
            rtol=rtol,
            atol=atol,
            regularizer=regularizer,
        )


def recipe(name: str, in_features: int | None = None) -> Recipe:
    """The recipe for a data set.

    Args:
        name: ``digits``, ``mnist``, ``cifar10``; or a regression set: ``uci``, ``uci/<set>`` or
            ``diabetes``.
        in_features: number of inputs of a regression set; the others know theirs.

    Raises:
        ValueError: unknown name, or ``in_features`` missing or not that of the data set.
        TypeError: ``in_features`` is no integer.
    """
    if name == "uci" or name == "diabetes" or name.startswith("uci/"):
        if in_features is None:
            raise ValueError(f"the recipe {name!r} needs in_features, the number of inputs")
        check_positive(in_features=in_features)
        return _regression(name, in_features)
    if name not in _CLASSIFICATION:
        known = ", ".join([*_CLASSIFICATION, "uci", "uci/<set>", "diabetes"])
        raise ValueError(f"unknown recipe {name!r}, expected one of {known}")
    inputs, make = _CLASSIFICATION[name]
    if in_features not in (None, inputs):
        raise ValueError(
            f"the recipe {name!r} takes {inputs} inputs, got in_features={in_features}"
        )
    return make()


class TileLabel(nn.Module):
    """Repeats an embedding [B, C] over an image [B, C, size, size]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :, None, None].expand(-1, -1, self.size, self.size)


def _norm_mlp(*sizes: int) -> list[nn.Module]:
    """Linear layers with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [nn.BatchNorm1d(fan_in), nn.ReLU()] if index else []
        layers += [nn.Linear(fan_in, fan_out)]
    return layers


def _dense_nets(inputs: int, latent: int, hidden: int, classes: int) -> Nets:
    return Nets(
        encoder=nn.Sequential(nn.Flatten(), *_norm_mlp(inputs, latent, latent, latent)),
        label_encoder=nn.Linear(classes, latent),
        decoder=nn.Sequential(*_norm_mlp(latent, latent, classes)),
        field=MLPField(latent, hidden),
    )


def _table_nets(inputs: int, latent: int, hidden: int) -> Nets:
    return Nets(
        encoder=nn.Sequential(nn.Linear(inputs, latent), nn.ReLU(), nn.Linear(latent, latent)),
        label_encoder=nn.Linear(1, latent),
        decoder=nn.Linear(latent, 1),
        field=MLPField(latent, hidden),
    )


def _image_nets(latent: int = 256, width: int = 64, size: int = 7, classes: int = 10) -> Nets:
    encoder: list[nn.Module] = [nn.Conv2d(3, width, 3), nn.ReLU()]
    for _ in range(4):
        encoder += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    encoder += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.ReLU()]
    encoder += [nn.Conv2d(width, latent, 4, stride=2, padding=1)]
    pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Nets(
        encoder=nn.Sequential(*encoder),
        label_encoder=nn.Sequential(nn.Linear(classes, latent), TileLabel(size)),
        decoder=nn.Sequential(*pool, nn.Linear(latent, classes)),
        field=ConvField(latent),
    )


def _digits() -> Recipe:
    return Recipe(
        name="digits",
        task="classification",
        num_classes=10,
        label_noise=3.0,
        lr=3e-3,
        schedule="cosine",
        steps=4000,
        batch=128,
        make_nets=lambda: _dense_nets(64, 128, 512, 10),
    )


def _mnist() -> Recipe:
    return Recipe(
        name="mnist",
        task="classification",
        num_classes=10,
        label_noise=3.0,
        lr=1e-4,
        schedule="none",
        steps=500_000,
        batch=1024,
        make_nets=lambda: _dense_nets(784, 784, 2048, 10),
    )


def _cifar10() -> Recipe:
    return Recipe(
        name="cifar10",
        task="classification",
        num_classes=10,
        label_noise=10.0,
        lr=3e-4,
        schedule="cosine",
        steps=100_000,
        batch=1024,
        make_nets=_image_nets,
    )


def _regression(name: str, in_features: int) -> Recipe:
    return Recipe(
        name=name,
        task="regression",
        num_classes=None,
        label_noise=3.0,
        lr=3e-3,
        schedule="none",
        steps=500_000,
        batch=64,
        make_nets=lambda: _table_nets(in_features, latent=64, hidden=64),
        clip_simfree=1.0,
        patience=100,
    )


_CLASSIFICATION: dict[str, tuple[int, Callable[[], Recipe]]] = {
    "digits": (64, _digits),
    "mnist": (784, _mnist),
    "cifar10": (3 * 32 * 32, _cifar10),
}

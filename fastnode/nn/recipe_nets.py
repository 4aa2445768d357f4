"""The networks of the recipes, freshly initialised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastnode.nn.fields import ConvField, MLPField, TimeConv2d
from fastnode.nn.latent import GRUEncoder


class Nets(NamedTuple):
    """The networks of a model; there is no label encoder where training is through the solver."""

    encoder: nn.Module
    label_encoder: nn.Module | None
    decoder: nn.Module
    field: nn.Module


class TileLabel(nn.Module):
    """Repeats an embedding [B, C] over an image [B, C, size, size]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :, None, None].expand(-1, -1, self.size, self.size)


def norm_mlp(*sizes: int) -> list[nn.Module]:
    """Linear layers with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [nn.BatchNorm1d(fan_in), nn.ReLU()] if index else []
        layers += [nn.Linear(fan_in, fan_out)]
    return layers


def dense_nets(inputs: int, latent: int, hidden: int, classes: int) -> Nets:
    return Nets(
        encoder=nn.Sequential(nn.Flatten(), *norm_mlp(inputs, latent, latent, latent)),
        label_encoder=nn.Linear(classes, latent),
        decoder=nn.Sequential(*norm_mlp(latent, latent, classes)),
        field=MLPField(latent, hidden),
    )


def table_nets(inputs: int, latent: int, hidden: int, outputs: int = 1) -> Nets:
    return Nets(
        encoder=nn.Sequential(nn.Linear(inputs, latent), nn.ReLU(), nn.Linear(latent, latent)),
        label_encoder=nn.Linear(outputs, latent),
        decoder=nn.Linear(latent, outputs),
        field=MLPField(latent, hidden),
    )


def image_nets(latent: int = 256, width: int = 64, size: int = 7, classes: int = 10) -> Nets:
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


def small_image_nets(latent: int, hidden: int, width: int, classes: int) -> Nets:
    """For 32x32 images: convolutions with BatchNorm, of which three halve them, and the field of
    `dense_nets`: a convolutional one without normalisation takes far longer to train."""
    layers: list[nn.Module] = []
    for fan_in, fan_out, kernel in (
        (3, width, 4),
        (width, width, 3),
        (width, 2 * width, 4),
        (2 * width, 2 * width, 3),
        (2 * width, 2 * width, 4),
    ):
        stride = 2 if kernel == 4 else 1
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
    encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * 16, latent))
    return dense_nets(latent, latent, hidden, classes)._replace(encoder=encoder)


def image_ode_nets(inputs: int, hidden: int, classes: int) -> Nets:
    """The image itself is the state."""
    return Nets(
        encoder=nn.Flatten(),
        label_encoder=None,
        decoder=nn.Linear(inputs, classes),
        field=MLPField(inputs, hidden, depth=2, activation="tanh"),
    )


class AugmentChannels(nn.Module):
    """Channels that a convolution makes of an image are added: [B, 3, H, W] to [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels - 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.convolution(x)], dim=1)


class NormConvField(nn.Module):
    """Three 3x3 convolutions with BatchNorm and GELU between them, a channel of t before each."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        sizes = (channels, hidden, hidden, channels)
        self.convolutions = nn.ModuleList(
            TimeConv2d(*pair) for pair in zip(sizes, sizes[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in range(2))

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            z = nn.functional.gelu(norm(convolution(t, z)))
        return self.convolutions[-1](t, z)


def image_channels_nets(channels: int, hidden: int, size: int, classes: int) -> Nets:
    return Nets(
        encoder=AugmentChannels(channels),
        label_encoder=None,
        decoder=nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes)),
        field=NormConvField(channels, hidden),
    )


def latent_nets(variables: int, latent: int, recurrent: int, hidden: int) -> Nets:
    return Nets(
        encoder=GRUEncoder(variables, latent, recurrent),
        label_encoder=None,
        decoder=nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, variables)),
        field=MLPField(latent, hidden, activation="tanh", time="none"),
    )


def spiral_nets(hidden: int) -> Nets:
    return Nets(
        encoder=nn.Identity(),
        label_encoder=None,
        decoder=nn.Identity(),
        field=MLPField(2, hidden, depth=2, activation="tanh", time="none"),
    )

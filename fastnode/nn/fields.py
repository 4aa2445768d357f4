"""Vector fields that solvers and flow matching call alike: ``field(t, z)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.engines.fused.mlp import ACTIVATION_NUMBERS, ACTIVATIONS, LAST, TIMELESS, read_chain

TIME_MODES = ("every", "once", "none")
MAX_DEPTH = 8


def check_positive(**sizes: int) -> None:
    """Raises TypeError or ValueError unless every size is an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an integer, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_call(t: Tensor | float, z: Tensor, size: int, axis: int) -> None:
    if z.ndim < -axis or z.shape[axis] != size:
        raise ValueError(
            f"z must have size {size} along dimension {axis}, got shape {tuple(z.shape)}"
        )
    if isinstance(t, Tensor) and t.ndim and (z.ndim == -axis or t.shape != z.shape[:1]):
        raise ValueError(
            "t must be a scalar or one time per sample: "
            f"got shape {tuple(t.shape)} for z of shape {tuple(z.shape)}"
        )


def _time_column(t: Tensor, z: Tensor) -> Tensor:
    """Times [B] as one more input of each sample: [*z.shape[:-1], 1]."""
    return t.to(z.dtype).reshape(-1, *[1] * (z.ndim - 1)).expand(*z.shape[:-1], 1)


class TimeLinear(nn.Linear):
    """A linear layer that takes the time as one more input, the last.

    Its weight is [out_features, in_features + 1]; the last column multiplies t. Equivalent to::

        column = t.expand(z.shape[:-1]).unsqueeze(-1)
        F.linear(torch.cat([z, column], dim=-1), weight, bias)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features + 1, out_features, bias)

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        if isinstance(t, Tensor) and t.ndim:
            # Measured on a CPU: with one time per sample the copy is cheaper than another pass
            # over the output (5 to 25 % of a small layer), forward and backward.
            # MLPField makes the column once for all its layers.
            column = t if t.ndim == z.ndim else _time_column(t, z)
            return F.linear(torch.cat([z, column], dim=-1), self.weight, self.bias)
        # One time for all samples only changes the bias: no copy of z is made or kept.
        weight, time_weight = self.weight.split_with_sizes([self.in_features - 1, 1], dim=1)
        shift = t * time_weight.squeeze(1)
        return F.linear(z, weight, shift if self.bias is None else self.bias + shift)


class TimeConv2d(nn.Conv2d):
    """A 3x3 convolution (zero padding 1) with one more input channel, the last, that holds t.

    Its weight is [out_channels, in_channels + 1, 3, 3]. Equivalent to::

        channel = t.reshape(-1, 1, 1, 1).expand(len(z), 1, *z.shape[-2:])
        F.conv2d(torch.cat([z, channel], dim=1), weight, bias, padding=1)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels + 1, out_channels, 3, padding=1)

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        # A constant channel contributes t times one image, the same for all samples: its value
        # differs only at the border, where the padding holds zeros. Measured on a CPU: as fast as
        # the concatenation at 256 channels, 20 % faster at 32; and channels stay a multiple of 8.
        weight, time_weight = self.weight.split_with_sizes([self.in_channels - 1, 1], dim=1)
        image = F.conv2d(z.new_ones(1, *z.shape[-2:]), time_weight, padding=1)
        out = F.conv2d(z, weight, self.bias, padding=1)
        if isinstance(t, Tensor) and t.ndim:
            return torch.addcmul(out, t.to(image.dtype).reshape(-1, 1, 1, 1), image)
        return out + t * image


#: The column of the time in the weight of a layer, by its class.
_COLUMNS = {nn.Linear: TIMELESS, TimeLinear: LAST}


class MLPField(nn.Module):
    """A multilayer perceptron as a vector field: dz/dt = field(t, z).

    Args:
        dim: size of the state, the last dimension of z.
        hidden: width of all hidden layers, or one width for each of them.
        depth: number of linear layers, 1 to 8 (default 3). With a sequence ``hidden`` it follows
            from its length and may be left out. ``depth=1`` has no hidden layer.
        activation: elu, gelu (exact), leaky_relu (0.01), relu, selu, sigmoid, silu, sin, softplus
            or tanh, after every layer but the last.
        time: ``every`` appends t to the input of every layer, ``once`` to that of the first,
            ``none`` leaves it out (an autonomous field).
        bias: whether the layers have a bias.

    Shape:
        ``field(t, z)`` takes z of shape [..., dim] and t a number, a tensor without dimensions or,
        for z of shape [B, ..., dim], a tensor of shape [B]; it returns the shape of z.
        ``field.layers[i].weight`` is [out, in], or [out, in + 1] with the time's column last.

    Raises:
        ValueError: a size below 1, an unknown name, more than 8 layers; shapes of t or z in a call.
        TypeError: a size that is no integer.

    Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918 (ReLU, time at every layer); Chen et
    al., NeurIPS 2018, arXiv 1806.07366 (tanh).
    """

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int],
        depth: int | None = None,
        activation: str = "relu",
        time: str = "every",
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        if isinstance(hidden, Sequence):
            widths = tuple(hidden)
            if depth not in (None, len(widths) + 1):
                raise ValueError(
                    f"depth must be {len(widths) + 1} for hidden={hidden}, got {depth}"
                )
            depth = len(widths) + 1
        else:
            depth = 3 if depth is None else depth
            check_positive(depth=depth)
            widths = (hidden,) * (depth - 1)
        if depth > MAX_DEPTH:
            raise ValueError(f"depth must be at most {MAX_DEPTH} layers, got {depth}")
        for width in widths:
            check_positive(hidden=width)
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {activation!r}, expected one of {known}")
        if time not in TIME_MODES:
            raise ValueError(f"time must be one of {', '.join(TIME_MODES)}, got {time!r}")
        self.dim, self.widths, self.activation, self.time = dim, widths, activation, time
        sizes = (dim, *widths, dim)
        self.layers = nn.ModuleList()
        for index in range(depth):
            timed = time == "every" or (time == "once" and index == 0)
            kind = TimeLinear if timed else nn.Linear
            self.layers.append(kind(sizes[index], sizes[index + 1], bias))

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        _check_call(t, z, self.dim, -1)
        activate = ACTIVATIONS[self.activation]
        if isinstance(t, Tensor) and t.ndim:
            t = _time_column(t, z)
        for index, layer in enumerate(self.layers):
            if index:
                z = activate(z)
            z = layer(t, z) if isinstance(layer, TimeLinear) else layer(z)
        return z

    def perceptron(self) -> tuple[list[tuple[Tensor, Tensor | None, int]], int] | None:
        """What the fused engine solves: (weight, bias, column of the time or -1) of each layer and
        the number of the activation; None if hooks or other changes alter the field."""
        if type(self) is not MLPField:
            return None
        # self.layers would go through nn.Module.__getattr__, at every solve.
        layers: Any = self._modules["layers"]
        found = read_chain(self, layers._modules, _COLUMNS)
        return None if found is None else (found, ACTIVATION_NUMBERS[self.activation])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, activation={self.activation}, time={self.time}"


class ConvField(nn.Module):
    """Convolutions as a vector field on images: ReLU, then a 3x3 convolution, ``layers`` times.

    A channel that holds t is appended before each convolution; no norm, no skip.

    Args:
        channels: channels of the state.
        hidden: channels between the layers; those of the state by default.
        layers: number of convolutions.

    Shape:
        ``field(t, z)`` takes z of shape [B, channels, H, W] (or without B) and t a number, a
        tensor without dimensions or of shape [B]; it returns the shape of z.

    Raises:
        ValueError: a size below 1; shapes of t or z in a call.
        TypeError: a size that is no integer.

    Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918 (six layers of 256 channels).
    """

    def __init__(self, channels: int, hidden: int | None = None, layers: int = 6) -> None:
        super().__init__()
        hidden = channels if hidden is None else hidden
        check_positive(channels=channels, hidden=hidden, layers=layers)
        self.channels = channels
        sizes = (channels, *[hidden] * (layers - 1), channels)
        self.layers = nn.ModuleList(TimeConv2d(sizes[i], sizes[i + 1]) for i in range(layers))

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        _check_call(t, z, self.channels, -3)
        for layer in self.layers:
            z = layer(t, torch.relu(z))
        return z

    def extra_repr(self) -> str:
        return f"channels={self.channels}"

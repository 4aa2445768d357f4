"""Training a neural ODE on pairs without solving it: flow matching in a learned embedding space."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.flow import Path, flow_loss, get_path
from fastnode.nn.fields import check_positive
from fastnode.nn.node import EncodedODE, check_module, full_precision
from fastnode.ops.flow_loss import squared_error


class LossParts(NamedTuple):
    """The training loss and its parts: ``total = flow + label``, scalars."""

    total: Tensor
    flow: Tensor
    label: Tensor


class SimulationFreeNODE(EncodedODE):
    """A neural ODE that learns pairs (x, y) from one evaluation of its field per training step.

    With z0 = encoder(x), z1 = label_encoder(y), z_t and u_t on the path between them, and noise
    e ~ N(0, 1)::

        loss = mean((field(t, z_t) - u_t) ** 2) + mean((decoder(z1 + label_noise * e) - y) ** 2)

    Gradients reach all four modules: the encoders through z_t and through u_t as well. Predictions
    solve dz/dt = field(t, z) from encoder(x) at t = 0 to t = 1, by default in one Euler step.

    Args:
        encoder: x to the embedding [B, ...].
        label_encoder: targets (one-hot rows or values [B, k]) to the embedding.
        decoder: embedding to targets.
        field: the vector field, called ``field(t, z)`` with t of shape [B] or without dimensions.
        path: ``linear``, ``concave``, ``convex`` or a :class:`fastnode.flow.Path`.
        label_noise: standard deviation sigma of the noise on the label's embedding.
        zero_probability: share of training samples at exactly t = 0.
        num_classes: classes of integer targets; None for targets that are given as rows.
        compile: whether predictions run native code of the field, as in :class:`NeuralODE`; the
            loss calls the field itself.

    Raises:
        TypeError: a module is none, or ``path`` is neither a name nor a path.
        ValueError: unknown path, negative noise, a probability outside [0, 1], no classes.

    Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918, sections 3 and 4.
    """

    def __init__(
        self,
        encoder: nn.Module,
        label_encoder: nn.Module,
        decoder: nn.Module,
        field: nn.Module,
        path: str | Path = "linear",
        label_noise: float = 3.0,
        zero_probability: float = 0.1,
        num_classes: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(encoder, field, decoder, method="euler", steps=1, compile=compile)
        check_module(label_encoder=label_encoder)
        if not label_noise >= 0:
            raise ValueError(f"label_noise must be at least 0, got {label_noise}")
        if not 0 <= zero_probability <= 1:
            raise ValueError(f"zero_probability must lie in [0, 1], got {zero_probability}")
        if num_classes is not None:
            check_positive(num_classes=num_classes)
        self.label_encoder = label_encoder
        self.path = get_path(path)
        self.label_noise, self.zero_probability = label_noise, zero_probability
        self.num_classes = num_classes

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> LossParts:
        """The training loss on a batch, each part a mean over all elements.

        Args:
            x: whatever the encoder takes, B samples.
            y: targets: class numbers of an integer dtype [B], or rows [B, k] of a floating dtype.
            generator: source of the times and the noise, on the embedding's device; the default
                generator otherwise. Not for use under ``torch.compile``.

        Returns:
            ``total``, ``flow`` and ``label``, summed in float32 (float64 for float64).

        Raises:
            ValueError: targets of the wrong shape or out of range, embeddings or predictions whose
                shapes do not match.
            TypeError: targets that are no numbers, or of another floating dtype than x.
        """
        self._check_targets(x, y)
        z0 = full_precision(self.encoder(x))
        if not y.is_floating_point():
            y = F.one_hot(y.long(), self.num_classes or 0).to(z0.dtype)
        z1 = full_precision(self.label_encoder(y))
        precise = torch.promote_types(z0.dtype, torch.float32)
        t, zt, target = self.path.draw(z0, z1, self.zero_probability, generator=generator)
        flow = flow_loss(self.field(t, zt).to(z0.dtype), target)
        noise = torch.randn(z1.shape, dtype=z1.dtype, device=z1.device, generator=generator)
        decoded = self.decoder(torch.add(z1, noise, alpha=self.label_noise))
        if decoded.shape != y.shape:
            raise ValueError(
                f"decoder must return the targets' shape {tuple(y.shape)}, "
                f"got {tuple(decoded.shape)}"
            )
        label = squared_error(decoded.to(precise), y.to(precise))
        return LossParts(flow + label, flow, label)

    def _check_targets(self, x: Any, y: Tensor) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}")
        if y.dtype == torch.bool or y.is_complex():
            raise TypeError(f"y must be of an integer or floating dtype, got {y.dtype}")
        shape, classes = tuple(y.shape), self.num_classes
        if isinstance(x, Tensor):
            if x.shape[:1] != y.shape[:1]:
                raise ValueError(
                    f"x and y must hold as many samples, got {tuple(x.shape)}, {shape}"
                )
            if x.device != y.device:
                raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
            if x.is_floating_point() and y.is_floating_point() and x.dtype != y.dtype:
                raise TypeError(f"x and y must have one dtype, got {x.dtype} and {y.dtype}")
        if y.is_floating_point():
            if y.ndim < 2 or classes not in (None, shape[-1]):
                expected = "k" if classes is None else classes
                raise ValueError(f"floating y must be of shape [B, {expected}], got {shape}")
        elif classes is None:
            raise ValueError("integer y needs num_classes; give numbers as floating rows [B, k]")
        elif y.ndim != 1:
            raise ValueError(f"integer y must be of shape [B], got {shape}")
        elif y.device.type == "cpu" and y.numel() and not torch.compiler.is_compiling():
            # Elsewhere the check would wait for the device, which checks one-hot indices itself.
            low, high = (int(value) for value in y.aminmax())
            if low < 0 or high >= classes:
                raise ValueError(
                    f"classes of y must lie in 0 to {classes - 1}, got {low} to {high}"
                )

    def extra_repr(self) -> str:
        return (
            f"path={self.path!r}, label_noise={self.label_noise}, "
            f"zero_probability={self.zero_probability}, {super().extra_repr()}"
        )


class LossModule(nn.Module):
    """A module whose forward is ``model.loss``, for wrappers that act on forward.

    DistributedDataParallel averages the gradients of what its forward computed, so a model that is
    trained by its ``loss`` is wrapped as::

        training = DistributedDataParallel(LossModule(model))
        training(x, y).total.backward()

    and evaluated and saved as ``model`` itself. Each process draws its own times and noise: give
    them different seeds.
    """

    def __init__(self, model: SimulationFreeNODE) -> None:
        super().__init__()
        check_module(model=model)
        self.model = model

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> LossParts:
        return self.model.loss(x, y, generator)

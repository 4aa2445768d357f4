"""A recipe: the networks and hyper-parameters that belong to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from fastnode.flow import Path
from fastnode.nn import recipe_nets
from fastnode.nn.ablations import AutoencodedNODE, PadZeros, TakeFirst
from fastnode.nn.fields import MLPField
from fastnode.nn.latent import OwnTimesODE
from fastnode.nn.node import EncodedODE
from fastnode.nn.recipe_nets import Nets
from fastnode.nn.simfree import SimulationFreeNODE
from fastnode.regularize import Regularizer

EMBEDDINGS = ("learned", "augmented", "autoencoded")


@dataclass(frozen=True)
class Recipe:
    """Networks and hyper-parameters for a data set.

    Attributes:
        name: the recipe's name.
        task: whether targets are class numbers [B], standardised rows [B, 1] or series
            [B, T, 2, D], as in :class:`fastnode.datasets.Dataset`.
        num_classes: number of classes; None without any.
        lr: learning rate.
        steps: training steps, at most.
        batch: samples in a step.
        make_nets: makes the networks.
        inputs: numbers in a sample of a classification set; None elsewhere.
        label_noise: noise on the label's embedding, for simulation-free training; None where
            training is through the solver alone.
        optimizer: ``adamw`` without weight decay, or ``adamax``.
        schedule: ``none``; ``cosine`` from ``lr`` to ``lr_end`` over the steps; ``inverse``,
            lr / (1 + 1e-5 step).
        clip_simfree, clip_node: largest gradient norm, by how the model is trained; None: no bound.
        patience: validations without improvement until training stops early; None: never.
        method, tolerance: the solver of a model that is trained through it.
        times: T times of a series, the first being that of the state; 0 where the task has none.
        own_times: whether each series is solved at its own times, with per-sample stepping.
        spread: standard deviation with which a latent ODE explains an observation; None for
            series without noise.
    """

    name: str
    task: Literal["classification", "regression", "interpolation"]
    num_classes: int | None
    lr: float
    steps: int
    batch: int
    make_nets: Callable[[], Nets] = field(repr=False)
    inputs: int | None = None
    label_noise: float | None = None
    optimizer: Literal["adamw", "adamax"] = "adamw"
    schedule: Literal["none", "cosine", "inverse"] = "none"
    lr_end: float = 0.0
    clip_simfree: float | None = None
    clip_node: float | None = 1.0
    patience: int | None = None
    method: str = "dopri5"
    tolerance: float = 1e-3
    times: int = 0
    own_times: bool = False
    spread: float | None = None

    @property
    def default_method(self) -> str:
        """``simfree`` or ``node``."""
        return "node" if self.label_noise is None else "simfree"

    def build_simfree(
        self,
        path: str | Path = "linear",
        zero_probability: float = 0.1,
        label_noise: float | None = None,
        embedding: str = "learned",
    ) -> SimulationFreeNODE:
        """A new model for training without simulation: ``model.loss(x, y).total``.

        Args:
            label_noise: defaults to that of the recipe.
            embedding: ``learned`` with the flow; ``augmented``, the data and labels themselves,
                lengthened by zeros; ``autoencoded``, learned by autoencoding alone.

        Raises:
            ValueError: a recipe for training through the solver, an unknown embedding, or one
                that these networks cannot have.
        """
        if self.label_noise is None:
            raise ValueError(f"recipe {self.name!r} is trained through the solver: method 'node'")
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}, got {embedding!r}")
        nets = self.make_nets()
        assert nets.label_encoder is not None
        settings = {
            "path": path,
            "label_noise": self.label_noise if label_noise is None else label_noise,
            "zero_probability": zero_probability,
            "num_classes": self.num_classes,
        }
        if embedding == "learned":
            return SimulationFreeNODE(*nets, **settings)  # pyright: ignore
        if not isinstance(nets.field, MLPField) or self.inputs is None:
            raise ValueError(f"recipe {self.name!r} has no embedding {embedding!r}, only 'learned'")
        if embedding == "autoencoded":
            data_decoder = nn.Sequential(*recipe_nets.norm_mlp(nets.field.dim, self.inputs))
            return AutoencodedNODE(data_decoder, *nets, **settings)  # pyright: ignore
        size = max(self.inputs, nets.field.dim)
        field = MLPField(size, nets.field.widths)
        pad = PadZeros(size)
        return SimulationFreeNODE(pad, pad, TakeFirst(self.num_classes or 0), field, **settings)

    def build_node(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        regularizer: Regularizer | None = None,
    ) -> EncodedODE:
        """A new model of the same networks for training through the solver.

        ``model(x)`` gives logits for the cross-entropy, or values for the mean squared error. The
        tolerances default to those of the recipe.
        """
        nets = self.make_nets()
        kind = OwnTimesODE if self.own_times else EncodedODE
        return kind(
            nets.encoder,
            nets.field,
            nets.decoder,
            self.method,
            rtol=self.tolerance if rtol is None else rtol,
            atol=self.tolerance if atol is None else atol,
            regularizer=regularizer,
            times=torch.linspace(0, 1, self.times, dtype=torch.float64) if self.times else None,
        )

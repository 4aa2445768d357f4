"""What is reproduced: one row for each training run, at a size for a CPU or at the papers' own.

FLOW is Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918; LOCAL is Pal, Edelman, Rackauckas, ICML
2023, arXiv 2303.02262.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastnode.datasets import UCI

FLOW, LOCAL = "arXiv 2410.22918", "arXiv 2303.02262"
TRUE = {"hold_k1": False}
#: Title and source of each section.
SECTIONS = {
    "mnist-local": ("Local regularisation, MNIST", LOCAL),
    "mnist-paper": ("Local regularisation, MNIST: float32 and a constant initial slope", LOCAL),
    "physionet-local": ("Local regularisation, PhysioNet 2012", LOCAL),
    "cifar10-local": ("Local regularisation, CIFAR10", LOCAL),
    "spiral": ("Spiral", "arXiv 1806.07366"),
    "mnist-simfree": ("Simulation-free, MNIST", FLOW),
    "cifar10-simfree": ("Simulation-free, CIFAR10", FLOW),
    "ablations": ("Simulation-free, ablations on MNIST", FLOW),
    "uci": ("Simulation-free against training through the solver, UCI", FLOW),
    "uci-time": ("The same with about as much time", FLOW),
}


#: What a reader must know of a section's lines.
NOTES = {
    "mnist-local": (
        "784-100-784 in float64 with the gradient of the error itself (hold_k1=False), weight "
        "1e6; [regularization.md](regularization.md) says why. A seed holds with at most 0.70 "
        "of the evaluations of the same seed without, at most 0.5 points below it. Faster is "
        "the time of predicting 256 images, both models in turn."
    ),
    "mnist-paper": (
        "The same as published: float32 and a constant initial slope, weight 2.5 to 1.0. At a "
        "tolerance of 1.4e-8 float32's rounding decides the steps."
    ),
    "physionet-local": (
        "Mean squared error of what was observed, variables scaled to 0 to 1. float64, "
        "hold_k1=False, weight 1e8. A seed holds with at most 0.70 of the evaluations at an "
        "error at most 8 % larger. Faster is the time of the whole prediction, of which the "
        "encoder takes most in a net this small."
    ),
    "ablations": (
        "The convex path sets out along z0 alone (b'(0) = 0), so that one Euler step cannot "
        "know the label. Augmented dimensions: the flow leads from the pixels to the one-hot "
        "label."
    ),
    "uci": "All four have the same nets, steps and early stopping.",
    "uci-time": (
        "Simulation-free training takes more steps to its best, each of them cheaper: it has at "
        "most 20,000 here and the others 8,000, which take about as long; rnode has 1,000. "
        "simfree-half draws half of its training times as 0, where the paper draws a tenth: the "
        "first step of Euler goes by the field there. That share was tried on the first splits "
        "of power, protein and wine, where the error on the data for early stopping spoke for it."
    ),
}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        section: a key of `SECTIONS`; group: what is run, a line of the section's table, which
            gathers the seeds or splits.
        index: the seed, or of UCI sets the split.
        settings: of `fastnode.training.Config`, where they are not the recipe's own.
        paper: the paper's figure of the group.
    """

    section: str
    group: str
    index: int
    settings: dict[str, Any]
    paper: str

    @property
    def name(self) -> str:
        """Of its row in the file, and of its folder of checkpoints."""
        words = f"{self.section} {self.group} {self.index}".replace("/", " ").replace(",", "")
        return "-".join(words.split())


def rows(full: bool) -> list[Row]:
    """All rows, those first that others are compared with."""
    makers = (_mnist_local, _mnist_paper, _physionet, _spiral, _simfree, _ablations)
    makers += (_uci, _uci_time, _cifar10)
    return [row for make in makers for row in make(full)]


def _local(weight: float, weight_end: float | None = None, **more: Any) -> dict[str, dict]:
    """Settings without a regulariser and with both kinds of local ones."""
    weights = {"regularizer_weight": weight, "regularizer_weight_end": weight_end}
    return {
        "vanilla": {},
        **{
            mode: {"regularizer": f"local-{mode}", **weights, **more}
            for mode in ("unbiased", "biased")
        },
    }


def _mnist_local(full: bool) -> Iterator[Row]:
    # In float32 rounding is several hundred times the error of a first step at this tolerance.
    size = {} if full else {"steps": 800, "batch": 32}
    common = {"dataset": "mnist", "recipe": "mnist-ode", "precision": "float64", **size}
    paper = {
        "vanilla": "97.61 %, NFE 303.6",
        "unbiased": "97.53 %, NFE 188.0 (0.62)",
        "biased": "97.49 %, NFE 182.9 (0.60)",
    }
    for seed in range(3):
        for group, settings in _local(1e6, **TRUE).items():
            yield Row(
                "mnist-local", group, seed, {**common, "seed": seed, **settings}, paper[group]
            )


def _mnist_paper(full: bool) -> Iterator[Row]:
    size = {} if full else {"steps": 800, "batch": 32}
    common = {"dataset": "mnist", "recipe": "mnist-ode", **size}
    paper = {
        "vanilla": "97.61 %, NFE 303.6",
        "unbiased": "97.53 %, NFE 188.0 (0.62)",
        "biased": "97.49 %, NFE 182.9 (0.60)",
    }
    for seed in range(3):
        for group, settings in _local(2.5, 1.0).items():
            yield Row(
                "mnist-paper", group, seed, {**common, "seed": seed, **settings}, paper[group]
            )


def _physionet(full: bool) -> Iterator[Row]:
    size = {"recipe": "physionet"} if full else {"recipe": "physionet-small", "steps": 600}
    common = {"dataset": "physionet", "precision": "float64", **size}
    paper = {
        "vanilla": "3.41e-3, NFE 758",
        "unbiased": "3.64e-3, NFE 422 (0.56)",
        "biased": "3.63e-3, NFE 463 (0.61)",
    }
    for seed in range(3):
        for group, settings in _local(PHYSIONET_WEIGHT, **TRUE).items():
            yield Row(
                "physionet-local", group, seed, {**common, "seed": seed, **settings}, paper[group]
            )
    recipe = "physionet-own" if full else "physionet-own-small"
    own = {**common, "recipe": recipe, "tolerance": 1e-5, "steps": 3000 if full else 30}
    yield Row("physionet-local", "vanilla, each at its own times", 0, own, "-")


PHYSIONET_WEIGHT = 1e8


def _cifar10(full: bool) -> Iterator[Row]:
    recipe = "cifar10-ode" if full else "cifar10-ode-small"
    common = {"dataset": "cifar10", "recipe": recipe}
    common |= {} if full else {"steps": 200, "batch": 16}
    paper = {
        "vanilla": "67.39 %, NFE 115.3",
        "unbiased": "67.68 %, NFE 89.0 (0.77)",
        "biased": "67.75 %, NFE 81.3 (0.71)",
    }
    for group, settings in _local(2.5, **TRUE).items():
        yield Row("cifar10-local", group, 0, {**common, **settings}, paper[group])


def _spiral(full: bool) -> Iterator[Row]:
    for group, settings in _local(10.0, **TRUE).items():
        yield Row("spiral", group, 0, {"dataset": "spiral", **settings}, "-")


def _simfree(full: bool) -> Iterator[Row]:
    mnist = {"dataset": "mnist"} if full else {"dataset": "mnist", "recipe": "mnist-small"}
    cifar: dict[str, Any] = {"dataset": "cifar10"}
    cifar |= {} if full else {"recipe": "cifar10-small", "zero_probability": 0.5}
    yield Row("mnist-simfree", "simfree", 0, mnist, "99.30 % (dopri5)")
    through = {"method": "node", "steps": 20_000 if full else 1000}
    yield Row("mnist-simfree", "node", 0, {**mnist, **through}, "-")
    yield Row("cifar10-simfree", "simfree", 0, cifar, "88.89 % (dopri5)")


def _ablations(full: bool) -> Iterator[Row]:
    common = {"dataset": "mnist"}
    common |= {"steps": 50_000} if full else {"recipe": "mnist-small", "steps": 1500}
    changes: dict[str, dict[str, Any]] = {
        "linear path": {},
        "concave path": {"path": "concave"},
        "convex path": {"path": "convex"},
        "no sampling at t = 0": {"zero_probability": 0.0},
        "no label noise": {"label_noise": 0.0},
        "augmented dimensions": {"embedding": "augmented", "label_noise": 0.0},
        "autoencoding alone": {"embedding": "autoencoded"},
    }
    for group, settings in changes.items():
        yield Row("ablations", group, 0, {**common, **settings}, "-")


RIVALS = ("simfree", "node", "steer", "rnode")


def _uci(full: bool) -> Iterator[Row]:
    for split in range(5 if full else 1):
        for name in UCI:
            for group in RIVALS:
                yield _table_row("uci", name, group, split, {} if full else {"steps": 1000})


def _uci_time(full: bool) -> Iterator[Row]:
    groups: dict[str, dict[str, Any]] = {
        "simfree": {"steps": 20_000},
        "simfree-half": {"steps": 20_000, "zero_probability": 0.5},
        "node": {"steps": 8000},
        "steer": {"steps": 8000},
        "rnode": {"steps": 1000},
    }
    for split in () if full else range(5):
        for name in UCI:
            for group, settings in groups.items():
                yield _table_row("uci-time", name, group, split, settings)


def _table_row(section: str, name: str, group: str, split: int, settings: dict[str, Any]) -> Row:
    settings = {"dataset": f"uci/{name}", "split": split, **settings}
    if not group.startswith("simfree"):
        settings["method"] = "node"
    if group in ("steer", "rnode"):
        settings["regularizer"] = group
    return Row(section, f"{name} {group}", split, settings, "-")

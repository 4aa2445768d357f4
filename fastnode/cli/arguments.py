"""The arguments of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

WRONG = 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: error: {message}\n")


def make_parser() -> Parser:
    """The parser of all commands; `command` of what it returns is the name of one."""
    parser = Parser(prog="fastnode", description="Neural ODEs: train, evaluate, inform.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a neural ODE on a data set",
        description="Train a neural ODE. Settings that are left out are the data set's own.",
    )
    add = train.add_argument
    add(
        "dataset",
        metavar="DATASET",
        help="digits, diabetes, mnist, cifar10, physionet, spiral or uci/<name>",
    )
    add(
        "--recipe",
        metavar="NAME",
        help="nets and settings other than the data set's own: "
        "mnist-ode, mnist-small, cifar10-ode, physionet-own, ...",
    )
    add("--method", help="simfree or node, through the solver (default: the recipe's)")
    add("--path", default="linear", help="of simfree: linear (default), concave or convex")
    add(
        "--regularizer",
        default="none",
        metavar="NAME",
        help="of node: local-unbiased, local-biased, global-error, global-stiffness, steer, rnode "
        "or taynode (default none)",
    )
    add(
        "--regularizer-weight",
        type=float,
        metavar="WEIGHT",
        help="weight of the penalty; for steer half the width of the interval of end times",
    )
    add(
        "--regularizer-weight-end",
        type=float,
        metavar="WEIGHT",
        help="weight at the end of the run, reached exponentially (default: the same throughout)",
    )
    add(
        "--true-gradient",
        action="store_true",
        help="of local regularisers: the gradient of the first slope as well",
    )
    add("--tolerance", type=float, help="rtol and atol of node (default: the recipe's)")
    add("--precision", default="float32", help="float32 (default) or float64")
    add(
        "--zero-probability",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of simfree: samples at t = 0 (default 0.1)",
    )
    add(
        "--label-noise",
        type=float,
        metavar="STD",
        help="of simfree: noise on embedded labels (default: the recipe's)",
    )
    add(
        "--embedding",
        default="learned",
        help="of simfree: learned (default), augmented or autoencoded",
    )
    add("--split", type=int, default=0, help="split of a UCI set (default 0)")
    add("--seed", type=int, default=0, help="seed of everything random (default 0)")
    add("--steps", type=int, help="optimiser steps")
    add("--batch", type=int, help="samples per step, over all processes")
    add("--lr", type=float, help="learning rate")
    add(
        "--eval-every",
        type=int,
        metavar="STEPS",
        help="between validations (default: an epoch or 50, the larger)",
    )
    add("--device", help="cpu, cuda, ... (default cuda where there is one)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoint and metrics")
    add("--checkpoint-every", type=int, default=1000, metavar="STEPS", help="default 1000")
    add("--resume", action="store_true", help="continue the run in DIR, if there is one")

    evaluate = commands.add_parser("evaluate", help="score a checkpoint solver by solver")
    evaluate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file, or run folder")
    evaluate.add_argument("--device", help="cpu, cuda, ... (default cuda where there is one)")

    commands.add_parser("info", help="versions, and which implementations are active")
    return parser

"""The arguments of the command line."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NoReturn

WRONG = 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: error: {message}\n")


class Version(argparse.Action):
    """Prints the version, which is looked up only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import fastnode

        print(f"fastnode {fastnode.__version__}")
        parser.exit()


def make_parser() -> Parser:
    """The parser of all commands; `command` of what it returns is the name of one."""
    parser = Parser(prog="fastnode", description="Neural ODEs: train, evaluate, predict, inform.")
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a neural ODE on a data set, or on a csv or npz file of your own",
        description="Train a neural ODE. Settings default to those of the data set's recipe.",
    )
    add_settings(train)
    add = train.add_argument
    add("--device", help="cpu, cuda, ... (default cuda where there is one)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoint and metrics")
    add("--checkpoint-every", type=int, default=1000, metavar="STEPS", help="default 1000")
    resume = "continue the run in DIR, if there is one; with more --steps, to that number"
    add("--resume", action="store_true", help=resume)

    evaluate = commands.add_parser("evaluate", help="score a checkpoint solver by solver")
    evaluate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file, or run folder")
    evaluate.add_argument("--device", help="cpu, cuda, ... (default cuda where there is one)")

    predict = commands.add_parser(
        "predict",
        help="predict the target of each row of a file by a run on a file of your own",
        description="Predict by a run on a csv or npz file of your own. DATA has the columns that "
        "were inputs there, under the same names (x of an npz file); other columns are ignored.",
    )
    add = predict.add_argument
    add("checkpoint", type=Path, metavar="RUN", help="run folder, or checkpoint")
    add("data", type=Path, metavar="DATA", help="csv or npz file")
    add(
        "--out", type=Path, required=True, metavar="CSV", help="file with a prediction for each row"
    )
    add(
        "--solver", help="euler-1, euler-10, ..., dopri5 (default: euler-1 of simfree, else dopri5)"
    )
    add("--device", help="cpu, cuda, ... (default cuda where there is one)")

    commands.add_parser("info", help="versions, and which implementations are active")
    cache = commands.add_parser("cache", help="compiled fields that are kept")
    cache.add_argument("--clear", action="store_true", help="remove them")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One argument for each field of `Config` with a help text, under the field's name."""
    from fastnode.training.config import TYPES, Config

    for each in fields(Config):
        if "help" not in each.metadata:
            continue
        text, name = each.metadata["help"], each.name
        if "choices" in each.metadata:
            text += f": {', '.join(each.metadata['choices'])}"
        if "flag" in each.metadata:
            parser.add_argument(each.metadata["flag"], action="store_false", dest=name, help=text)
            continue
        if name == "dataset":
            parser.add_argument(name, help=text)
            continue
        # What has no default in Config comes from the recipe.
        default = None if each.default is MISSING else each.default
        if "default" not in text:
            text += f" (default: {'as in the recipe' if default is None else default})"
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=TYPES[str(each.type).removesuffix(" | None")][-1],
            default=default,
            metavar="VALUE",
            help=text,
        )

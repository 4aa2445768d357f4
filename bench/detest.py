"""The 25 DETEST problems by fastnode and by torchdiffeq: python -m bench.detest

Evaluations and error at the end (largest component) for each method and tolerance, rtol = atol.
Tsit5, which released torchdiffeq lacks, stands beside diffrax's, if that is installed. Writes
detest.jsonl, and detest.md with the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
import torchdiffeq

import fastnode
from bench.detest_problems import END, PROBLEMS, Problem
from bench.machine import head
from bench.results_file import Row, Run, write

METHODS = ("bosh3", "dopri5", "tsit5", "dopri8")
TOLERANCES = (1e-3, 1e-6, 1e-9)
#: How far two solvers that take different last steps may differ by chance.
MARGIN = 1.05


class Outcome(NamedTuple):
    evaluations: int
    end: list[float]


@torch.no_grad()
def solve(library: Any, problem: Problem, method: str, tolerance: float) -> Outcome:
    count = 0

    def field(t, y):
        nonlocal count
        count += 1
        return problem.field(torch, t, y)

    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    times = torch.tensor([0.0, END], dtype=torch.float64)
    found = library.odeint(field, y0, times, method=method, rtol=tolerance, atol=tolerance)
    return Outcome(count, found[-1].tolist())


def solve_with_diffrax(problem: Problem, tolerance: float) -> Outcome:
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: problem.field(jax.numpy, t, y)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=END,
        dt0=None,
        y0=jax.numpy.asarray(problem.y0),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=None,
    )
    # Six new stages a step, and both ends of the trial step that chooses the first one.
    return Outcome(6 * int(found.stats["num_steps"]) + 2, found.ys[-1].tolist())


def end_of(name: str, problem: Problem) -> tuple[list[float], float]:
    """The state at END and how far a second source lies from it."""
    ours = solve(fastnode, problem, "dopri8", 1e-13).end
    if problem.end is not None:
        return list(problem.end), error(ours, problem.end)
    other = scipy.integrate.solve_ivp(
        lambda t, y: problem.field(np, t, y),
        (0.0, END),
        problem.y0,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    distance = error(other.y[:, -1].tolist(), ours)
    if distance > 1e-10:
        raise SystemExit(f"{name}: DOP853 and dopri8 end {distance:.1e} apart")
    return ours, distance


def error(found: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))


def measure(names: Sequence[str]) -> list[Row]:
    rows = []
    other_tsit5 = importlib.util.find_spec("diffrax") is not None
    for name in names:
        problem = PROBLEMS[name]
        wanted, uncertainty = end_of(name, problem)
        print(name, flush=True)
        for method in METHODS:
            for tolerance in TOLERANCES:
                runs = {"fastnode": solve(fastnode, problem, method, tolerance)}
                if method != "tsit5":
                    runs["torchdiffeq"] = solve(torchdiffeq, problem, method, tolerance)
                elif other_tsit5:
                    runs["diffrax"] = solve_with_diffrax(problem, tolerance)
                rows.append(
                    {
                        "problem": name,
                        "method": method,
                        "tolerance": tolerance,
                        "uncertainty": uncertainty,
                        "evaluations": {lib: run.evaluations for lib, run in runs.items()},
                        "error": {lib: error(run.end, wanted) for lib, run in runs.items()},
                    }
                )
    return rows


def other_of(row: Row) -> str | None:
    return next((library for library in row["error"] if library != "fastnode"), None)


def ratios(row: Row) -> tuple[float, float]:
    """Evaluations and error over those of the other library."""
    other = other_of(row)
    # What lies below the uncertainty of the end is no difference.
    floor = max(row["uncertainty"], 1e-15)
    ours, theirs = (max(row["error"][library], floor) for library in ("fastnode", other))
    return row["evaluations"]["fastnode"] / row["evaluations"][other], ours / theirs


def holds(row: Row, margin: float) -> bool:
    evaluations, errors = ratios(row)
    return evaluations <= 1 and errors <= margin


def mean_ratio(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def table(report: Run) -> str:
    rows = [row for row in report.rows if other_of(row)]
    judged = [row for row in rows if other_of(row) == "torchdiffeq"]
    fewer = sum(ratios(row)[0] <= 1 for row in judged)
    within = f"within {MARGIN - 1:.0%}"
    lines = [
        "# The DETEST problems",
        "",
        "Evaluations of the field and error at the end (largest component), t in [0, 20], float64, "
        f"rtol = atol = tolerance. torchdiffeq {report.head['torchdiffeq']}, "
        f"torch {report.head['torch']}.",
        "",
        f"Of {len(judged)} rows against torchdiffeq, {sum(holds(r, 1) for r in judged)} have an "
        "error not above torchdiffeq's with the same or fewer evaluations, "
        f"{sum(holds(r, MARGIN) for r in judged)} {within} of its error; "
        f"{fewer} have the same or fewer evaluations. tsit5, against diffrax, is information: "
        "torchdiffeq has none.",
        "",
        "Both take the same steps but for the last two, so an error may come out larger by chance: "
        "what the last steps add can cancel what the steps before left, or not. The means are "
        "geometric, of ours over the other's.",
        "",
        f"| method | tolerance | against | rows | hold | {within} | same or fewer evaluations | "
        "mean evaluations | mean error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        for tolerance in TOLERANCES:
            group = [r for r in rows if (r["method"], r["tolerance"]) == (method, tolerance)]
            if not group:
                continue
            pairs = [ratios(row) for row in group]
            lines.append(
                f"| {method} | {tolerance:.0e} | {other_of(group[0])} | {len(group)} | "
                f"{sum(holds(r, 1) for r in group)} | {sum(holds(r, MARGIN) for r in group)} | "
                f"{sum(evaluations <= 1 for evaluations, _ in pairs)} | "
                + " | ".join(f"{mean_ratio(column):.3f}" for column in zip(*pairs, strict=True))
                + " |"
            )
    for method in METHODS:
        lines += ["", f"## {method}", ""]
        other = "diffrax" if method == "tsit5" else "torchdiffeq"
        titles = [f"{tol:.0e}: fastnode | {other} | error ratio | holds" for tol in TOLERANCES]
        lines += [f"| | {' | '.join(titles)} |", "|---" * (1 + 4 * len(titles)) + "|"]
        for name in PROBLEMS:
            mine = [r for r in rows if (r["problem"], r["method"]) == (name, method)]
            if mine:
                lines.append(f"| {name} | " + " | ".join(cells(row) for row in mine) + " |")
    return "\n".join(lines) + "\n"


def cells(row: Row) -> str:
    other = other_of(row)
    verdict = "yes" if holds(row, 1) else f"{MARGIN - 1:.0%}" if holds(row, MARGIN) else "**no**"
    pair = [f"{row['evaluations'][lib]}: {row['error'][lib]:.2e}" for lib in ("fastnode", other)]
    return f"{pair[0]} | {pair[1]} | {ratios(row)[1]:.2f} | {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/detest.jsonl"))
    arguments = parser.parse_args()
    versions = {**head(), "torchdiffeq": torchdiffeq.__version__}
    report = Run("detest", versions, measure(arguments.problems))
    write(arguments.out, report.head, report.rows)
    text = table(report)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

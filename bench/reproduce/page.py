"""The page of results: our figures, the papers', and the budget of each of ours."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from bench.reproduce import plots
from bench.reproduce.rows import NOTES, SECTIONS, Row
from bench.reproduce.run import kept
from fastnode.training.checkpoint import write_atomically

Found = list[tuple[Row, dict[str, Any] | None]]
NOT_RUN = "not run"
#: What local regularisation is to reach: NFE against vanilla, and accuracy in points.
MOST_NFE, MOST_POINTS = 0.70, 0.5
#: The same for the error of series.
MOST_ERROR = 1.08
HEAD = """# Reproduction

Written by `make reproduce`, or `python -m bench.reproduce --full` for the papers' own sizes; the
rows are kept as they end, so a broken run continues where it was. "Paper" is the authors'
figure at their budget, "ours" what the budget beside it gave: where it is smaller than the paper's,
the two are not to be equal, and what compares is the order of the lines and their ratios. What was
not run says so.
"""


def write_page(rows: list[Row], results: Path, page: Path) -> None:
    """Writes the page and its plots, in a folder beside it with the name of the page."""
    plots.draw(list(zip(rows, kept(results, rows), strict=True)), page.with_suffix(""))
    text = body(rows, results, page.stem)
    whole = f"{HEAD}\n<!-- measured: reproduction -->\n\n{text}\n\n<!-- /measured -->\n"
    write_atomically(page, whole.encode())


def body(rows: list[Row], results: Path, images: str) -> str:
    """All sections; ``images`` is the folder of the plots, seen from the page."""
    found = list(zip(rows, kept(results, rows), strict=True))
    pictures = plots.pictures(found)
    parts = [_machines(found)]
    for section, (title, source) in SECTIONS.items():
        mine = [(row, content) for row, content in found if row.section == section]
        if not mine:
            continue
        note = f"Paper: {_link(source)}. {NOTES.get(section, '')}".rstrip()
        parts.append(f"## {title}\n\n{note}\n\n{_section(section, mine)}")
        for name, caption in pictures.get(section, ()):
            parts.append(f"![{caption}]({images}/{name})")
    return "\n\n".join(part.rstrip() for part in parts)


def _link(source: str) -> str:
    return f"[{source}](https://arxiv.org/abs/{source.split()[1]})"


def _machines(found: Found) -> str:
    runs = [content for _, content in found if _ended(content)]
    machines = sorted({content["machine"] for content in runs})
    versions = sorted({content["torch"] for content in runs})
    hours = sum(content["seconds"] for content in runs) / 3600
    return (
        f"{len(runs)} of {len(found)} rows were run, {hours:.1f} hours of training steps in all: "
        f"{'; '.join(machines) or 'none'}; torch {', '.join(versions) or '-'}. The machine was "
        "shared with other work, so seconds are upper bounds; evaluations (NFE) are exact."
    )


def _ended(content: dict[str, Any] | None) -> bool:
    return content is not None and "failed" not in content


def _section(section: str, found: Found) -> str:
    if section.startswith("uci"):
        return _uci(found)
    local = section.endswith(("-local", "-paper")) or section == "spiral"
    lines = _local(found) if local else _simfree(found)
    return "\n".join(lines)


def groups(found: Found) -> Iterable[tuple[str, list[Row], list[dict[str, Any]]]]:
    """Of each group its name, its rows and what those of them that ended left behind."""
    order = {row.group: number for number, (row, _) in reversed(list(enumerate(found)))}
    key = lambda pair: order[pair[0].group]  # noqa: E731
    for _, pairs in groupby(sorted(found, key=key), key=key):
        pairs = list(pairs)
        yield (
            pairs[0][0].group,
            [row for row, _ in pairs],
            [content for _, content in pairs if content is not None and _ended(content)],
        )


def _state(row: Row, contents: list[dict[str, Any]], found: Found) -> str | None:
    """Why there is no figure, if there is none."""
    if contents:
        return None
    mine = [content for each, content in found if each.group == row.group and content is not None]
    return f"diverged: {mine[0]['failed']}" if mine else NOT_RUN


def budget(rows: list[Row], contents: list[dict[str, Any]]) -> str:
    """Steps, batch, data and time of the rows that ended."""
    if not contents:
        return "-"
    config, data = contents[0]["config"], contents[0]["data"]
    seconds = mean(content["seconds"] for content in contents)
    several = f", {len(contents)} of {len(rows)} seeds" if len(rows) > 1 else ""
    device = "" if contents[0]["device"] == "cpu" else f", {contents[0]['device']}"
    return (
        f"{config['steps']} steps of {config['batch']}, {data['samples']} samples, "
        f"{config['precision']}, {seconds:.0f} s{several}{device}"
    )


def last(content: dict[str, Any]) -> tuple[float, float]:
    """Score and NFE with the last of the solvers: the accurate one."""
    results = content["results"]
    score = list(results["solvers"].values())[-1]
    return score[results["metric"]], score["nfe"]


def shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"


def _local(found: Found) -> list[str]:
    lines = [
        "| run | test | NFE | NFE / vanilla | faster | holds | paper | budget |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bases = {
        row.index: content
        for row, content in found
        if row.group == "vanilla" and content is not None and _ended(content)
    }
    for group, rows, contents in groups(found):
        missing = _state(rows[0], contents, found)
        if missing:
            lines.append(f"| {group} | {missing} | | | | | {rows[0].paper} | - |")
            continue
        pairs = [
            (content, bases[row.index])
            for row, content in found
            if row.group == group and content is not None and row.index in bases
        ]
        metric = contents[0]["results"]["metric"]
        test, nfe = (mean(values) for values in zip(*map(last, contents), strict=True))
        cells = [group, shown(metric, test), f"{nfe:.1f}"]
        comparable = pairs and rows[0].settings.get("regularizer")
        cells += _against(metric, pairs) if comparable else ["", "", ""]
        lines.append(f"| {' | '.join([*cells, rows[0].paper, budget(rows, contents)])} |")
    return lines


def _against(metric: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Share of evaluations, times faster, and how many seeds reach the goal."""
    shares, faster, holds = [], [], 0
    for content, base in pairs:
        (test, nfe), (base_test, base_nfe) = last(content), last(base)
        shares.append(nfe / base_nfe)
        if metric == "accuracy":
            as_good = 100 * (base_test - test) <= MOST_POINTS
        else:
            as_good = test <= MOST_ERROR * base_test
        holds += shares[-1] <= MOST_NFE and as_good
        if "seconds_per_batch" in content and "seconds_per_batch" in base:
            faster.append(base["seconds_per_batch"] / content["seconds_per_batch"])
    speed = f"{mean(faster):.2f}" if faster else "-"
    each = ", ".join(f"{share:.2f}" for share in shares)
    return [f"{mean(shares):.2f} ({each})", speed, f"{holds} of {len(pairs)}"]


def _simfree(found: Found) -> list[str]:
    lines = [
        "| run | test, Euler 1 | test, dopri5 | NFE | disagreement | training data, Euler 1 / "
        "dopri5 | samples/s | paper | budget |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group, rows, contents in groups(found):
        missing = _state(rows[0], contents, found)
        if missing:
            lines.append(f"| {group} | {missing} | | | | | | {rows[0].paper} | - |")
            continue
        content = contents[0]
        results = content["results"]
        metric, solvers = results["metric"], results["solvers"]
        one, exact = solvers["euler-1"], solvers["dopri5"]
        trained = content.get("trained_on", {}).get("solvers")
        on_training = (
            " / ".join(shown(metric, trained[name][metric]) for name in ("euler-1", "dopri5"))
            if trained
            else "-"
        )
        cells = [
            group,
            shown(metric, one[metric]),
            shown(metric, exact[metric]),
            f"{exact['nfe']:.4g}",
            f"{100 * results['disagreement']:.2f} %",
            on_training,
            f"{content['samples_per_second']:,.0f}",
            rows[0].paper,
            budget(rows, contents),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _uci(found: Found) -> str:
    """RMSE by one and by two Euler steps, means over the splits that all methods ended."""
    methods = list(dict.fromkeys(row.group.split()[1] for row, _ in found))
    own = [each for each in methods if each.startswith("simfree")]
    by_key = {(*row.group.split(), row.index): content for row, content in found if _ended(content)}
    names = list(dict.fromkeys(row.group.split()[0] for row, _ in found))
    splits = sorted({row.index for row, _ in found})
    lines = [
        f"| set | splits | Euler 1: {' / '.join(methods)} | Euler 2: the same | dopri5: the same "
        f"| seconds: the same | samples/s: the same | {' / '.join(own)} first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first, counted = dict.fromkeys(own, 0), 0
    for name in names:
        done = [s for s in splits if all((name, method, s) in by_key for method in methods)]
        if not done:
            lines.append(f"| {name} | 0 of {len(splits)} | {NOT_RUN} | | | | | |")
            continue
        cells = [name, f"{len(done)} of {len(splits)}"]
        best = {each: 0 for each in own}
        for solver in ("euler-1", "euler-2", "dopri5"):
            scores = {
                m: mean(by_key[name, m, s]["results"]["solvers"][solver]["rmse"] for s in done)
                for m in methods
            }
            least = min(score for m, score in scores.items() if m not in own)
            for each in own if solver != "dopri5" else ():
                best[each] += scores[each] < least
            cells.append(" / ".join(f"{score:.4g}" for score in scores.values()))
        for what in ("seconds", "samples_per_second"):
            means = [mean(by_key[name, m, s][what] for s in done) for m in methods]
            cells.append(" / ".join(f"{each:,.0f}" for each in means))
        counted += 1
        for each in own:
            first[each] += best[each] == 2
        cells.append(" / ".join(("no", "one", "both")[best[each]] for each in own))
        lines.append(f"| {' | '.join(cells)} |")
    ended = [content for _, content in found if content is not None and _ended(content)]
    most = sorted({content["config"]["steps"] for content in ended}, reverse=True)
    steps = f"at most {', '.join(map(str, most))} steps of 64" if ended else NOT_RUN
    held = " and ".join(f"{each} on {first[each]}" for each in own)
    lines += [
        "",
        f"RMSE in units of y; {steps}, the best of them by validation. First against training"
        f" through the solver, by one and by two Euler steps: {held} of {counted} sets.",
    ]
    return "\n".join(lines)

"""python -m bench.gpu CALL [--again FOLDER]: what a GPU that is lent for minutes is asked.

CALL is ``first`` or ``second``; results go to the folder that OUT names. A call is a list of
stages, each a process of its own with a limit, and all together take no longer than the call's
budget. A stage prints lines of JSON among its text, one for each thing found; they are appended to
its file as they come, so that a stage that is stopped loses only what it had not found yet.
``steps.json`` is rewritten after each stage. ``--again`` names what an earlier call left: the
second call repeats what failed there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

ROOT = Path(__file__).parents[1]
#: Seconds that a stage has to end after SIGINT, which lets pytest and Python print what they know,
#: and that the summary takes at the end.
GRACE, LAST = 10, 5
#: Stages of fewer seconds are not begun.
LEAST = 5
PYTEST = "python -m pytest -q -p no:cacheprovider -p bench.gpu_failures -m gpu"
SMOKE, ROWS = "python -m bench.gpu_smoke", "python -m bench.gpu_rows"
GRAPH = "tests/engines/cuda_graph/test_cuda.py -k"
#: A profiler on a CUDA graph with conditional nodes, and a backward pass inside a capture: they may
#: break the process they are in.
LAST_TESTS = "by_checkpoint or host_waits"
#: Without torch's cache of memory, within whose blocks a kernel could write past a tensor unseen.
SANITIZER = "env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 --tool"
COUNTERS = "ncu --clock-control none --csv --log-file {out}/ncu.csv"
COUNTERS += " --kernel-name 'regex:mlp_joint|interpolant_fwd|flow_loss_fwd'"


@dataclass(frozen=True)
class Stage:
    """The word "python" of ``command`` stands for the Python at hand; ``file`` is where its lines
    of JSON go; ``native`` says that it needs the extension."""

    name: str
    limit: float
    command: str
    file: str = "rows.jsonl"
    native: bool = True


@dataclass(frozen=True)
class Call:
    budget: float
    stages: tuple[Stage, ...]


def smoke(name: str, limit: float, command: str, native: bool = True) -> Stage:
    return Stage(name, limit, command, "smoke.jsonl", native)


def tests(name: str, limit: float, arguments: str) -> Stage:
    return Stage(name, limit, f"{PYTEST} {arguments}", "tests.jsonl")


IMPORT = smoke("import", 20, f"{SMOKE} import", native=False)
BUILD = Stage("build", 150, "python setup.py build_ext --inplace", native=False)
CALLS = {
    "first": Call(
        440,
        (
            # With the extension that was carried along, where it loads.
            IMPORT,
            smoke("smoke", 90, SMOKE, native=False),
            tests("tests", 60, "-n 8 tests/ops tests/engines/fused tests/engines/native"),
            tests("triton tests", 35, "-n 8 tests/triton_kernels"),
            tests("graph tests", 25, f"{GRAPH} 'not ({LAST_TESTS})'"),
            Stage("ops", 40, f"{ROWS} ops tiles"),
            Stage("odeint", 40, f"{ROWS} odeint"),
            smoke("memcheck", 20, f"{SANITIZER} memcheck {SMOKE} --here rk fused"),
            smoke("racecheck", 20, f"{SANITIZER} racecheck {SMOKE} --here rk fused"),
            Stage("counters", 20, f"{COUNTERS} {ROWS} counted"),
            Stage("training", 30, f"{ROWS} training"),
            Stage("waits", 10, f"{ROWS} waits"),
            tests("last tests", 15, f"{GRAPH} '{LAST_TESTS}'"),
        ),
    ),
    "second": Call(
        200,
        (
            IMPORT,
            smoke("smoke again", 30, f"{SMOKE} {{groups}}"),
            tests("tests again", 35, "-n 8 {tests}"),
            Stage("lorenz", 30, f"{ROWS} lorenz"),
            Stage("samples", 25, f"{ROWS} samples"),
            Stage("last layer", 40, f"{ROWS} last_layer"),
        ),
    ),
}


def take_lines(stream: IO[str], log: IO[str], rows: Path, last: list[str]) -> None:
    """A stage's output: all into the log, JSON into ``rows`` too, the newest lines in ``last``."""
    for line in stream:
        log.write(line)
        log.flush()
        if line.startswith("{") and line.endswith("}\n"):
            with rows.open("a") as file:
                file.write(line)
        elif line.strip():
            last[:] = [*last[-2:], line.rstrip()[:200]]


def _take_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(command: Sequence[str], limit: float, grace: float, log: Path, rows: Path) -> dict:
    """How a stage went: ``status``, ``seconds`` and, unless it passed, its last words."""
    begin, last = time.monotonic(), list[str]()
    with log.open("a") as written:
        written.write(f"== {' '.join(command)}\n")
        written.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=_take_interrupts,
            )
        except OSError as error:
            return {"status": f"not started: {error}", "seconds": 0.0}
        assert process.stdout is not None
        reader = Thread(target=take_lines, args=(process.stdout, written, rows, last), daemon=True)
        reader.start()
        try:
            code = process.wait(limit)
            status = {0: "passed", 5: "no tests"}.get(code, f"failed ({code})")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(grace)
                status = "out of time"
            except subprocess.TimeoutExpired:
                status = "killed"
        # Whatever is left of its processes would hold the pipe, and the device.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        reader.join(2)
    found = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    return found if status == "passed" else {**found, "last": last}


class Run:
    """One call, with its results in the folder ``out``."""

    def __init__(
        self, call: Call, out: Path, again: Path | None, python: str = sys.executable, scale=1.0
    ) -> None:
        self.call, self.out, self.again = call, out, again
        self.python, self.scale = python, scale
        self.begin = time.monotonic()
        self.steps: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds for the next stage, if it needs its grace and a summary follows."""
        return self.scale * (self.call.budget - GRACE - LAST) - (time.monotonic() - self.begin)

    def command(self, stage: Stage) -> list[str] | None:
        """What is run, with names filled in; None where nothing is there to repeat."""
        known = {"{out}": [str(self.out)], "{groups}": [], "{tests}": []}
        if self.again is not None:
            failed = [row for row in lines_of(self.again / "smoke.jsonl") if not row.get("ok")]
            known["{groups}"] = sorted({row["group"] for row in failed})
            failed = lines_of(self.again / "tests.jsonl")
            known["{tests}"] = [row["test"] for row in failed[:40]]
        words: list[str] = []
        for word in shlex.split(stage.command):
            if word in known and not known[word]:
                return None
            words += known.get(word) or [word.replace("{out}", str(self.out))]
        if "python" in words:
            words[words.index("python")] = self.python
        return words

    def take(self, stage: Stage) -> bool:
        limit, command = min(self.scale * stage.limit, self.left()), self.command(stage)
        if command is None:
            found: dict[str, Any] = {"status": "nothing to repeat", "seconds": 0.0}
        elif limit < self.scale * LEAST:
            found = {"status": "skipped", "seconds": 0.0}
        else:
            print(f"== {stage.name}", flush=True)
            log, rows = self.out / "log.txt", self.out / stage.file
            found = run(command, limit, self.scale * GRACE, log, rows)
        return self.note(stage, found)

    def note(self, stage: Stage, found: dict[str, Any]) -> bool:
        self.steps.append({"stage": stage.name, **found})
        replace_file(self.out / "steps.json", json.dumps(self.steps, indent=1) + "\n")
        print(f"   {stage.name}: {found['status']}, {found['seconds']} s", flush=True)
        return found["status"] == "passed"

    def all(self) -> bool:
        first, *rest = self.call.stages
        native = self.take(first)
        # A build takes the time of the last stages.
        if not native and self.take(BUILD):
            native = self.take(replace(first, name="import again"))
        for stage in rest:
            if stage.native and not native:
                self.note(stage, {"status": "no extension", "seconds": 0.0})
            else:
                self.take(stage)
        lines = summary(self.out, self.steps)
        replace_file(self.out / "summary.txt", "\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)
        return all(each["status"] in ("passed", "nothing to repeat") for each in self.steps)


def replace_file(path: Path, text: str) -> None:
    """Whoever ends this program finds the old text or the new one."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may not be there, or end within a line."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def words(row: dict[str, Any]) -> str:
    """A row of rows.jsonl as a line of a table."""
    line = f"{row.get('subject', '?'):<34} {row.get('case', ''):<22}"
    if "microseconds" not in row:
        return f"{line} {row.get('wrong') or row.get('refused')}"
    facts = [f"{name} {ratio:.2f}" for name, ratio in row.get("ratios", {}).items()]
    if "share_of_copy_bandwidth" in row:
        facts.append(f"{100 * row['share_of_copy_bandwidth']:.0f} % of copy bandwidth")
    facts += [f"{name} {row[name]}" for name in ("host_microseconds", "waits") if name in row]
    return f"{line} {row['microseconds']:>10.1f} us  {', '.join(facts)}"


def summary(out: Path, steps: Iterable[dict[str, Any]]) -> list[str]:
    """At most what a terminal keeps: rows, what failed, and the stages last."""
    lines = [words(row) for row in lines_of(out / "rows.jsonl")]
    checks = lines_of(out / "smoke.jsonl")
    for row in (row for row in checks if not row.get("ok")):
        lines.append(f"smoke {row.get('group')}: {row.get('check')}: {row.get('why')}"[:300])
    for row in lines_of(out / "tests.jsonl"):
        lines.append(f"test {row.get('test')}: {row.get('why')}"[:300])
    lines.append(
        f"{sum(bool(row.get('ok')) for row in checks)} of {len(checks)} smoke checks right"
    )
    lines += [f"{each['stage']:<14} {each['status']:<18} {each['seconds']:>6} s" for each in steps]
    return lines


def environment() -> None:
    """What all stages inherit."""
    # A shell's background jobs ignore SIGINT, and would pass that on to the stages.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["PYTHONUNBUFFERED"] = "1"
    # Before a device's library is loaded: deterministic mode, which poisons memory, asks for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FASTNODE_CUDA", "1")
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and (found := shutil.which("nvidia-smi")):
        asked = [found, "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout
        if match := re.search(r"\d+\.\d+", text):
            os.environ["TORCH_CUDA_ARCH_LIST"] = match[0]
    link = ROOT / "fastnode" / "triton_kernels"
    if not link.exists():
        link.symlink_to("../triton_kernels")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--again", type=Path, help="the folder of an earlier call")
    parsed = parser.parse_args(arguments)
    if not os.environ.get("OUT"):
        parser.error("OUT must name a folder")
    environment()
    out = Path(os.environ["OUT"]).resolve()
    return 0 if Run(CALLS[parsed.call], out, parsed.again).all() else 1


if __name__ == "__main__":
    sys.exit(main())

"""``make gpu`` with stand-ins for the Python that has a GPU and for NVIDIA's tools."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from selection import slow

from bench import gpu

ROOT = Path(__file__).parents[2]
#: Rows come before a stage breaks, hangs until SIGINT, or hangs whatever comes.
STAND_IN = """#!/bin/sh
echo "called with $*"
echo '{"group": "rk", "check": "one", "ok": true}'
case "$*" in
  *"gpu_rows ops"*) echo broken; exit 3 ;;
  *"gpu_rows odeint"*) trap 'echo "{\\"late\\": true}"; exit 1' INT; sleep 60 & wait ;;
  *"gpu_rows training"*) trap '' INT; sleep 60 & wait; sleep 60 ;;
esac
"""


def make_program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def run(folder: Path, text: str, call="first", scale=0.05, again=None, monkeypatch=None):
    """The statuses of a call's stages by their names, with stand-ins for all programs."""
    python = make_program(folder / "python", text)
    tool = f'#!/bin/sh\nexec {python} as $0 "$@"\n'
    for name in ("compute-sanitizer", "ncu"):
        make_program(folder / name, tool)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    out = folder / "out"
    gpu.Run(gpu.CALLS[call], out, again, python, scale).all()
    steps = json.loads((out / "steps.json").read_text())
    return {each["stage"]: each["status"] for each in steps}


@pytest.fixture
def dry_run(tmp_path, monkeypatch):
    return lambda text, **more: run(tmp_path, text, monkeypatch=monkeypatch, **more)


@pytest.mark.parametrize("call, most", [("first", 440), ("second", 200)])
def test_limits_of_a_call_fit_its_budget(call, most):
    found = gpu.CALLS[call]
    assert found.budget <= most
    assert sum(stage.limit for stage in found.stages) + gpu.GRACE + gpu.LAST <= found.budget
    # What a session's machine returns.
    assert (
        len({"log.txt", "steps.json", "summary.txt", "ncu.csv"} | {s.file for s in found.stages})
        <= 8
    )


def test_commands_name_what_exists():
    from bench import gpu_rows, gpu_smoke

    known = {"gpu_smoke": gpu_smoke.GROUPS, "gpu_rows": gpu_rows.PARTS}
    for stage in (stage for call in gpu.CALLS.values() for stage in call.stages):
        command = shlex.split(stage.command)
        for n, word in enumerate(command):
            if word.startswith("tests/"):
                assert (ROOT / word).exists()
            if word.startswith("bench.gpu_") and word[6:] in known:
                named = [x for x in command[n + 1 :] if x[0] not in "-{"]
                assert set(named) <= set(known[word[6:]]), stage


@pytest.mark.slow
def test_a_stage_that_breaks_or_hangs_does_not_lose_the_others(
    dry_run, tmp_path, capsys, monkeypatch
):
    # Three seconds, as long as a busy machine may take to run a shell's trap.
    monkeypatch.setattr(gpu, "GRACE", 60)
    steps = dry_run(STAND_IN)
    assert steps["ops"] == "failed (3)"
    assert steps["odeint"] == "out of time"
    assert steps["training"] == "killed"
    others = {
        name: status for name, status in steps.items() if name not in ("ops", "odeint", "training")
    }
    assert set(others.values()) == {"passed"} and len(others) == 10
    # All rows are there: those before the end, and what SIGINT let the stage say.
    out = tmp_path / "out"
    rows = (out / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 6 and {"late": True} in map(json.loads, rows)
    assert (out / "log.txt").read_text().count("called with") == 13
    lines = (out / "summary.txt").read_text().splitlines()
    assert "4 of 4 smoke checks right" in lines and lines[-1].startswith("last tests")
    assert capsys.readouterr().out.endswith(lines[-1] + "\n")


HANGS = """sh -c "trap '' INT; sleep 60 & wait; sleep 60" """


@pytest.mark.slow
def test_stages_beyond_the_budget_are_skipped(dry_run, monkeypatch):
    stages = [gpu.Stage(str(n), 20, HANGS) for n in range(3)]
    monkeypatch.setitem(gpu.CALLS, "first", gpu.Call(60, (gpu.IMPORT, *stages)))
    # Of 45 seconds without the end, stages of 20 with 10 of grace each.
    assert list(dry_run("#!/bin/sh\n").values()) == ["passed", "killed", "killed", "skipped"]


@pytest.mark.slow
def test_an_import_that_hangs_leaves_time_for_a_build(dry_run, monkeypatch):
    monkeypatch.setitem(gpu.CALLS, "first", gpu.Call(440, gpu.CALLS["first"].stages[:3]))
    monkeypatch.setattr(gpu, "BUILD", replace(gpu.BUILD, limit=20))
    text = "#!/bin/sh\ncase $* in *import) trap '' INT; sleep 60 & wait; sleep 60;; esac\n"
    steps = dry_run(text)
    assert steps.pop("tests") == "no extension"
    assert list(steps.values()) == ["killed", "passed", "killed", "passed"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [stage.name for stage in gpu.CALLS["first"].stages])
def test_any_stage_may_be_lost_to_its_limit(lost, dry_run, monkeypatch):
    call = gpu.CALLS["first"]
    stages = [replace(s, command=HANGS) if s.name == lost else s for s in call.stages]
    monkeypatch.setitem(gpu.CALLS, "first", replace(call, stages=tuple(stages)))
    steps = dry_run("#!/bin/sh\n", scale=0.02)
    assert steps.pop(lost) == "killed"
    # Without an import there is a build, and one more try.
    others = {"passed", "killed", "no extension"} if lost == "import" else {"passed"}
    assert set(steps.values()) == others and len(steps) == 12 + 2 * (lost == "import")


def test_an_extension_that_does_not_load_is_built(dry_run, tmp_path):
    mark = tmp_path / "built"
    text = f"""#!/bin/sh
case "$*" in
  *setup.py*) touch {mark} ;;
  *import*) test -e {mark} ;;
esac
"""
    steps = dry_run(text)
    assert list(steps)[:4] == ["import", "build", "import again", "smoke"]
    assert steps["import"] == "failed (1)" and steps["import again"] == "passed"
    mark.unlink()
    steps = dry_run(text.replace("touch", "false"))
    assert steps["build"] == "failed (1)" and steps["smoke"] == "passed"
    assert {steps[name] for name in ("tests", "odeint", "last tests")} == {"no extension"}


def test_the_second_call_repeats_what_failed(dry_run, tmp_path):
    before = tmp_path / "before"
    before.mkdir()
    rows = [
        {"group": "rk", "ok": True},
        {"group": "fused", "ok": False},
        {"group": "fused", "ok": False},
    ]
    (before / "smoke.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"gro')
    (before / "tests.jsonl").write_text('{"test": "tests/a.py::test_b[c d]", "why": "x"}\n')
    steps = dry_run(STAND_IN, call="second", again=before)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "bench.gpu_smoke fused\n" in log and "tests/a.py::test_b[c d]\n" in log
    assert set(steps.values()) == {"passed"}
    steps = dry_run(STAND_IN, call="second")
    assert steps["smoke again"] == steps["tests again"] == "nothing to repeat"


def test_a_program_that_is_not_there_is_a_lost_stage(dry_run, tmp_path, monkeypatch):
    stage = gpu.Stage("counters", 20, "no-such-profiler")
    call = gpu.Call(400, (gpu.CALLS["first"].stages[0], stage, gpu.CALLS["first"].stages[-1]))
    monkeypatch.setitem(gpu.CALLS, "first", call)
    steps = dry_run(STAND_IN)
    assert steps["counters"].startswith("not started") and steps["last tests"] == "passed"


@pytest.mark.parametrize("workers", [(), slow(("-n", "2"))], ids=len)
def test_failed_tests_are_lines_of_json(tmp_path, workers):
    (tmp_path / "test_it.py").write_text("def test_a(): assert 1 == 2\ndef test_b(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu_failures", *workers]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    (found,) = map(json.loads, lines)
    assert found["test"] == "test_it.py::test_a" and "1 == 2" in found["why"]


def test_folder_must_be_named(monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit):
        gpu.main(["first"])
    assert "OUT must name a folder" in capsys.readouterr().err

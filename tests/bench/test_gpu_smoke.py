"""The checks and the measurements of ``make gpu`` on the CPU, in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda_graph import faked
from selection import slow

from bench import gpu_rows, gpu_smoke
from fastnode import extension

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON),
    pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu runs them at full size"),
]
INTERPRETED = ["triton", "trajectories"]


@pytest.fixture(autouse=True)
def settings():
    """A group has a process to itself, elsewhere."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(precision)


def rows(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    "group", ["import", "ceilings", "rk", *map(slow, ("fused", "fused_far", "fused_alone"))]
)
def test_a_group_finds_all_right(group, capsys):
    assert gpu_smoke.main(["--here", group]) == 0
    found = rows(capsys.readouterr().out)
    assert found and all(row["group"] == group and row["ok"] for row in found)


@pytest.mark.parametrize("group", ["graph_loop", slow("checkpoint")])
def test_groups_of_cuda_graphs_find_all_right(group, capsys):
    with faked():
        assert gpu_smoke.main(["--here", group]) == 0
    assert rows(capsys.readouterr().out)


def interpreted(*arguments):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return rows(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("group", INTERPRETED)
def test_groups_of_triton_find_all_right(group):
    found = interpreted("bench.gpu_smoke", "--here", group)
    assert found and all(row["ok"] for row in found)


def test_wrong_and_missing_numbers_are_found(capsys):
    check = gpu_smoke.Checks("rk")
    one = torch.ones(3)
    check("near", one + 1e-4, one, 1e-3)
    assert check.right
    for wrong in (one + 1e-2, one * torch.nan, torch.ones(4)):
        check("wrong", wrong, one, 1e-3)
    assert [row["ok"] for row in rows(capsys.readouterr().out)] == [True, False, False, False]
    assert not check.right


def test_a_process_that_dies_or_hangs_is_a_row(tmp_path, monkeypatch, capfd):
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpu_smoke, "LIMIT", 1)
    for text, why in (("kill -9 $$", "ended with -9"), ("exec sleep 60", "out of time")):
        program.write_text(f'#!/bin/sh\necho \'{{"group": "rk", "ok": true}}\'\n{text}\n')
        program.chmod(0o755)
        assert gpu_smoke.main(["rk"]) == 1
        first, last = rows(capfd.readouterr().out)
        assert first["ok"] and not last["ok"] and last["why"].startswith(why)


def test_a_group_that_raises_is_a_row(monkeypatch, capsys):
    monkeypatch.setitem(gpu_smoke.GROUPS, "rk", lambda check: 1 / 0)
    assert gpu_smoke.main(["--here", "rk"]) == 1
    (found,) = rows(capsys.readouterr().out)
    assert not found["ok"] and "ZeroDivisionError" in found["why"]


@pytest.mark.parametrize(
    "part", ["ops", "waits", "counted", "samples", slow("training"), slow("last_layer")]
)
def test_a_part_prints_rows(part, capsys):
    assert gpu_rows.main([part]) == 0
    found = rows(capsys.readouterr().out)
    assert all(row["microseconds"] > 0 for row in found) and bool(found) == (part != "counted")


def test_engines_are_measured_against_torchdiffeq(capsys):
    failures = gpu_rows.Failures()
    gpu_rows.odeint(failures)
    found = {row["subject"]: row for row in rows(capsys.readouterr().out)}
    # There is no CUDA graph here, which is a row and no failure.
    assert failures.count == 0 and "CUDA device" in found["odeint, graph"]["refused"]
    assert all(found[f"odeint, {engine}"]["ratios"] for engine in ("native", "fused"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tiles", "lorenz"])
def test_parts_of_triton_print_rows(part):
    assert all(row["microseconds"] > 0 for row in interpreted("bench.gpu_rows", part))

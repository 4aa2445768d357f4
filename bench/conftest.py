"""Shared by the benchmarks: what is recorded about the machine, and the table printed last."""

from __future__ import annotations

import platform

import pytest
import torch

import fastnode
from fastnode import extension


def pytest_addoption(parser) -> None:
    parser.addoption("--full", action="store_true", help="finer grids, for hours")


def pytest_collection_modifyitems(config, items) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only with --full"))


@pytest.fixture
def threads(request):
    """So many for torch and for us."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info.pop("node", None)
    machine_info["fastnode"] = fastnode.__version__
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["python"] = platform.python_version()
    if extension.AVAILABLE:
        from fastnode import _C

        machine_info["fastnode_build"] = _C.build_info()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    # The time of a commit says nothing about the run, and paths are nobody's business.
    output_json.pop("commit_info", None)


def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in getattr(session, "benchmarks", []) if "ratios" in b.extra_info]
    if not rows:
        return
    terminalreporter.section("how many times faster (medians of interleaved rounds)")
    for row in rows:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
        if "evaluations" in row:
            ratios += ", evaluations " + "/".join(map(str, row["evaluations"].values()))
        if "share_of_fma_peak" in row:
            ratios += f", {100 * row['share_of_fma_peak']:.0f} % of FMA peak"
        if "errors" in row:
            ratios += ", error " + "/".join(f"{x:.1e}" for x in row["errors"].values())
        if isinstance(row.get("megabytes"), dict):
            ratios += "".join(f", {name} {x:.0f} MB" for name, x in row["megabytes"].items())
        if "share_of_copy_bandwidth" in row:
            ratios += f", {100 * row['share_of_copy_bandwidth']:.0f} % of copy bandwidth"
        for name, reason in row.get("left_out", {}).items():
            ratios += f", without {name} ({reason})"
        terminalreporter.write_line(
            f"{row['subject']:<34} {row['case']:<16} {row['microseconds']:>10.1f} us   {ratios}"
        )

"""One run of all benchmarks, kept by subject."""

from __future__ import annotations

import json

import pytest

from bench import keep


def run_of(*names: str) -> dict:
    return {
        "machine_info": {"torch": "2.13"},
        "benchmarks": [{"fullname": name, "extra_info": {"case": name[-1]}} for name in names],
    }


def test_each_file_gets_its_own_results_in_the_order_of_the_run(tmp_path):
    names = ("bench/bench_work.py::b", "bench/bench_flow.py::a", "bench/bench_work.py::a")
    whole = tmp_path / "bench.json"
    whole.write_text(json.dumps(run_of(*names)))
    assert keep.main([str(whole), str(tmp_path)]) == 0
    work, flow = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("work", "flow"))
    assert [each["extra_info"]["case"] for each in work["benchmarks"]] == ["b", "a"]
    assert [each["fullname"] for each in flow["benchmarks"]] == ["bench/bench_flow.py::a"]
    assert work["machine_info"] == flow["machine_info"] == {"torch": "2.13"}


@pytest.mark.parametrize("names", [(), ("tests/api/test_solve.py::a",)])
def test_what_is_no_run_of_benchmarks_is_told(names):
    with pytest.raises(ValueError, match="must"):
        keep.parts(run_of(*names))

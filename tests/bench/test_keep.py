"""One run of all benchmarks, kept by the file that each comes from."""

from __future__ import annotations

import json

import pytest

from bench import keep
from bench.results_file import read


def run_of(*names: str) -> dict:
    """What pytest-benchmark writes, without most of it."""
    stats = {"q1": 1.0, "median": 2.0, "q3": 2.5, "rounds": 3, "data": [1.0, 2.0, 3.0]}
    return {
        "machine_info": {
            "torch": "2.13",
            "torch_threads": 2,
            "cpu": {"brand_raw": "A", "count": 4},
        },
        "benchmarks": [
            {"fullname": name, "extra_info": {"case": name[-1]}, "stats": stats} for name in names
        ],
    }


def written(path, *names: str):
    path.write_text(json.dumps(run_of(*names)))
    return path


def test_keep_gives_each_file_its_rows_in_order(tmp_path):
    names = ("bench/bench_work.py::b", "bench/bench_flow.py::a", "bench/bench_work.py::a")
    whole = written(tmp_path / "bench.json", *names)
    assert keep.main([str(whole), str(tmp_path)]) == 0
    work, flow = (read(tmp_path / f"{name}.jsonl") for name in ("work", "flow"))
    assert [row["case"] for row in work.rows] == ["b", "a"]
    times = {"quartiles": [1.0, 2.0, 2.5], "rounds": 3}
    assert flow.rows == [{"name": "bench/bench_flow.py::a", "case": "a", **times}]
    assert work.head == flow.head
    assert work.machine == "A, 2 threads, torch 2.13"


@pytest.mark.parametrize("names", [(), ("tests/api/test_solve.py::a",)])
def test_keep_refuses_what_is_no_run_of_benchmarks(tmp_path, names):
    with pytest.raises(ValueError, match="must"):
        keep.keep(read(written(tmp_path / "bench.json", *names)), tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '{"rows": []}'), ("a.json", ""), ("a.jsonl", ""), ("a.jsonl", "{\n")],
)
def test_read_names_a_file_of_something_else(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} must be a file of results"):
        read(tmp_path / name)

"""A user's own csv and npz files: what is found in them, and what is refused in one line."""

import numpy as np
import pytest
import torch

from fastnode import datasets


def write_csv(path, rows=42, header="age,height,kind", line="{i},{h:.3f},{kind}"):
    lines = [line.format(i=i, h=1 / (i + 1), kind="ab"[i % 3 == 0]) for i in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def write_npz(path, rows=42, **changes):
    random = np.random.RandomState(0)
    arrays = {"x": random.randn(rows, 3), "y": random.randn(rows)} | changes
    np.savez(path, **arrays)
    return str(path)


def whole(data, name):
    return torch.cat([getattr(data, f"{name}_{part}") for part in ("train", "valid", "test")])


def test_a_csv_file_with_texts_is_classified(tmp_path):
    path = write_csv(tmp_path / "my.csv")
    data = datasets.load(path, target="kind")
    assert (data.name, data.task, data.num_classes) == ("table", "classification", 2)
    assert data.source == path and data.table is not None
    assert data.table.features == ["age", "height"] and data.table.classes == ["a", "b"]
    assert [len(part) for part in (data.x_train, data.x_valid, data.x_test)] == [30, 6, 6]
    torch.testing.assert_close(data.x_train.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.x_train.std(0, correction=0), torch.ones(2))
    # Each row is in one part, with its own class.
    age = whole(data, "x")[:, 0].double() * data.table.x_std[0] + data.table.x_mean[0]
    age = age.round().long()
    assert torch.equal(age.sort().values, torch.arange(42))
    assert torch.equal(whole(data, "y"), (age % 3 == 0).long())
    # A third of each part is of the rarer class.
    assert all(float(y.float().mean()) == pytest.approx(1 / 3) for y in (data.y_valid, data.y_test))


def test_an_npz_file_with_numbers_is_regressed(tmp_path):
    path = write_npz(tmp_path / "my.npz")
    data = datasets.load(path)
    assert data.task == "regression" and data.num_classes is None
    assert data.y_train.shape == (30, 1) and data.x_test.shape == (6, 3)
    assert float(data.y_train.mean()) == pytest.approx(0, abs=1e-6)
    with np.load(path) as file:
        wanted = np.sort(file["y"])
    found = whole(data, "y").double()[:, 0] * data.y_std + data.y_mean
    np.testing.assert_allclose(found.sort().values, wanted, rtol=1e-6)


def test_the_split_follows_the_seed(tmp_path):
    path = write_npz(tmp_path / "my.npz")
    first, again, other = (datasets.load(path, seed=seed).x_test for seed in (0, 0, 2**40))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (np.arange(60) % 3, "classification", ["0", "1", "2"]),
        (np.arange(60.0) % 3 - 1, "classification", ["-1", "0", "1"]),
        (np.arange(60) % 2 == 0, "classification", ["False", "True"]),
        (np.array(["no", "yes"] * 30), "classification", ["no", "yes"]),
        (np.arange(60) % 7, "regression", []),
        (np.arange(60) % 3 + 0.5, "regression", []),
        ((np.arange(60) % 3)[:, None].astype("f4"), "classification", ["0", "1", "2"]),
    ],
    ids=["ints", "whole floats", "truth", "texts", "many", "halves", "column"],
)
def test_the_task_is_found_from_the_target(tmp_path, y, task, classes):
    data = datasets.load(write_npz(tmp_path / "my.npz", 60, y=y))
    assert data.table is not None
    assert data.task == task and data.table.classes == classes


def test_the_task_may_be_named(tmp_path):
    path = write_npz(tmp_path / "my.npz", 60, y=np.arange(60) % 3)
    assert datasets.load(path, task="regression").task == "regression"
    path = write_npz(tmp_path / "my.npz", 60, y=np.arange(60) % 7)
    assert datasets.load(path, task="classification").num_classes == 7


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_quotes_and_blank_lines_are_read(tmp_path, delimiter):
    path = tmp_path / "my.CSV"
    rows = [delimiter.join([f" {i}", f'"{i % 2}"', f"{i * i}"]) for i in range(20)]
    header = delimiter.join(["a", '"the, class"', "b"])
    path.write_bytes(("\ufeff" + "\r\n".join([header, "", *rows, ""]) + "\r\n").encode())
    data = datasets.load(str(path), target="the, class")
    assert data.table is not None and data.table.features == ["a", "b"]
    assert data.table.classes == ["0", "1"]


def test_each_class_of_two_rows_is_trained_on(tmp_path):
    y = np.array(["common"] * 40 + [f"rare {i // 2}" for i in range(20)])
    path = write_npz(tmp_path / "my.npz", 60, y=y)
    for seed in range(5):
        data = datasets.load(path, seed=seed)
        assert len(data.y_train.unique()) == data.num_classes == 11


CSV = [
    ("a,b,y\n1,2,3\n", "at least 10 are needed"),
    ("", "is empty; its first line must name the columns"),
    ("a,b,y\n", "has no rows"),
    ("1,2,3\n4,5,6\n", "the first line must name the columns, got numbers alone"),
    ("a,,y\n1,2,3\n", "column 2 has no name in the first line"),
    ("a,a,y\n1,2,3\n", "2 columns are called 'a'"),
    ("a,b,y\n1,2,3\n4,5\n", "line 3: 2 cells for 3 columns"),
    ('a,b,y\n1,"2"x,3\n', "line 2"),
    ("y\n1\n", "no column besides the target 'y'"),
    ("a,b,y\n1,2,3\n1,,3\n" + "1,2,3\n" * 9, "line 3, column 'b': a value is missing"),
    ("a,b,y\n1,NA,3\nx,?,3\n" + "1,2,3\n" * 9, r"line 2, column 'b'.* \(3 such cells in all\)"),
    ("a,b,y\n1,2,3\n1,Paris,3\n" + "1,2,3\n" * 9, "line 3, column 'b': 'Paris' is no number"),
    ("a,b,y\n1,2,3\n1,2,\n" + "1,2,3\n" * 9, "line 3, column 'y': a value is missing"),
    ("a,b,y\n1,inf,3\n" + "1,2,3\n" * 9, "line 2, column 'b': 'inf' is not finite"),
    ("a,b,y\n" + "1,2,3\n" * 10, "column 'y' has one value only, '3'"),
    ("a,b,y\n" + "1,2,q\n" * 10, "column 'y' has one value only, 'q'"),
    ("a,b,y\n" + "".join(f"1,2,q{i}\n" for i in range(10)), "10 classes, of which 'q0' has one"),
    ("a,y\n" + "".join(f"{i}e300,{i}\n" for i in range(10)), "column 'a' are too large"),
    ("a,y\n" + "".join(f"{i},{i}e300\n" for i in range(10)), "column 'y' are too large"),
]


@pytest.mark.parametrize(("text", "message"), CSV, ids=[each[1][:25] for each in CSV])
def test_a_csv_file_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = tmp_path / "my.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load(str(path), target="y")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones(42)}, r"x must be numbers \[N, D\], got float64 \[42\]"),
        ({"x": np.full((42, 1), "a")}, "x must be numbers"),
        ({"x": np.full((42, 2), np.nan)}, r"row 0, column 'x0': a value is missing.*84 such"),
        ({"y": np.ones((42, 2))}, r"y must be numbers or texts \[42\], got float64 \[42, 2\]"),
        ({"y": np.ones(41)}, r"got float64 \[41\]"),
        ({"y": np.ones(42, complex)}, "got complex128"),
        ({"y": np.array([object()] * 42)}, "is not an npz file with x, y"),
        ({"y": np.full(42, np.nan)}, "row 0, column 'y': a value is missing"),
        ({"y": np.r_[np.arange(41.0), np.inf]}, "row 41, column 'y': 'inf' is not finite"),
    ],
    # Not by their values: an object is shown by its address.
    ids=range(9),
)
def test_an_npz_file_that_cannot_be_used_is_refused(tmp_path, changes, message):
    path = write_npz(tmp_path / "my.npz", **changes)
    with pytest.raises(ValueError, match=message):
        datasets.load(path)


def test_wrong_names_and_targets_are_refused(tmp_path):
    path = write_csv(tmp_path / "my.csv")
    for target in (None, "weight"):
        with pytest.raises(ValueError, match=f"one of: age, height, kind; got {target!r}"):
            datasets.load(path, target=target)
    with pytest.raises(ValueError, match="'b' is no number"):
        datasets.load(path, target="kind", task="regression")
    with pytest.raises(ValueError, match="task must be classification or regression, got 'rank'"):
        datasets.load(path, target="kind", task="rank")
    with pytest.raises(ValueError, match="target of .*my.npz is its array y, got 'kind'"):
        datasets.load(write_npz(tmp_path / "my.npz"), target="kind")
    with pytest.raises(FileNotFoundError, match="none.csv: no such file"):
        datasets.load(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="unknown dataset 'my.xls'.* or a .csv or .npz file"):
        datasets.load("my.xls")
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        datasets.load(path, target="kind", seed=-1)
    with pytest.raises(ValueError, match="has one split only"):
        datasets.load(path, 1, target="kind")
    with pytest.raises(ValueError, match="target is for a .csv or .npz file, got 'y' for spiral"):
        datasets.load("spiral", target="y")
    (tmp_path / "my.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        datasets.load(path, target="y")


def test_inputs_are_found_by_name_and_standardised(tmp_path):
    data = datasets.load(write_csv(tmp_path / "my.csv"), target="kind")
    assert data.table is not None
    # Another order, one column more, no target.
    path = write_csv(tmp_path / "new.csv", 5, "name,height,age", "n{i},{h:.3f},{i}")
    found = data.table.inputs(path)
    age = torch.arange(5).double()
    wanted = ((age - data.table.x_mean[0]) / data.table.x_std[0]).float()
    assert found.dtype == torch.float32 and torch.equal(found[:, 0], wanted)
    for header, message in (
        ("age,h,kind", "lacks the column 'height' of the training data; it has age, h, kind"),
        ("height,kind,age", "line 2, column 'age': 'b' is no number"),
    ):
        with pytest.raises(ValueError, match=message):
            data.table.inputs(write_csv(tmp_path / "new.csv", 5, header))
    with pytest.raises(ValueError, match=r"data must be a .csv or .npz file, got .*my.txt"):
        data.table.inputs(tmp_path / "my.txt")
    (tmp_path / "new.csv").write_text("age,height\n1e300,1\n")
    with pytest.raises(ValueError, match="column 'age' are too large"):
        data.table.inputs(tmp_path / "new.csv")


def test_the_encoding_of_an_npz_file_needs_no_target(tmp_path):
    table = datasets.load(write_npz(tmp_path / "my.npz")).table
    assert table is not None
    x = np.random.RandomState(1).randn(4, 3)
    np.savez(tmp_path / "new.npz", x=x)
    wanted = (x - table.x_mean) / table.x_std
    np.testing.assert_allclose(table.inputs(tmp_path / "new.npz"), wanted, rtol=1e-6)
    outputs = torch.tensor([[0.0], [1.0]])
    assert [float(text) for text in table.texts(outputs)] == pytest.approx(
        [table.y_mean, table.y_mean + table.y_std]
    )

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fastnode
from fastnode import cli, extension
from fastnode.training import CHECKPOINT, METRICS, checkpoint

ROOT = Path(__file__).parents[2]
# One thread each: the tests' nets are small, and two processes must not fight for the cores.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
DIGITS = ["digits", "--batch", "32", "--device", "cpu", "--checkpoint-every", "20"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(*arguments, launcher=()):
    command = [sys.executable, "-m", *launcher, "fastnode", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def fails(capsys, *arguments):
    """Runs the command in this process, checks the form of its error and returns the message."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and "error: " in err and "Traceback" not in err
    return err


def parameters(folder):
    return checkpoint.load(Path(folder) / CHECKPOINT)["model"]


def test_train_then_evaluate_gives_the_same_table(tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert cli.main(["train", *DIGITS, "--steps", "30", "--out", str(out)]) == 0
    trained = capsys.readouterr().out.splitlines()
    assert trained[0].startswith("digits (scikit-learn), simfree, cpu")
    assert trained[1].split() == ["solver", "accuracy", "nfe"]
    names = [line.split()[0] for line in trained[2:7]]
    assert names == ["euler-1", "euler-2", "euler-10", "euler-20", "dopri5"]
    assert trained[7].startswith("disagreement of euler-1 and dopri5: ")
    assert sorted(os.listdir(out)) == [CHECKPOINT, METRICS]
    for path in (out, out / CHECKPOINT):
        assert cli.main(["evaluate", str(path), "--device", "cpu"]) == 0
        evaluated = capsys.readouterr().out.splitlines()
        assert evaluated[0] == "digits (scikit-learn), simfree, step 30"
        assert evaluated[1:] == trained[1:]


def test_regression_reports_rmse(tmp_path, capsys):
    arguments = ["--method", "node", "--steps", "12", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["train", "diabetes", *arguments]) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[1].split() == ["solver", "rmse", "nfe"] and "disagreement" not in out
    results = json.loads((tmp_path / METRICS).read_text())["results"]
    assert 10 < results["solvers"]["dopri5"]["rmse"] < 200


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start("train", *DIGITS, "--steps", 600, "--out", out))
    assert code == 0, err
    return parameters(out)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_run_resumes_to_the_same_parameters(tmp_path, whole_run, kind, code):
    arguments = ("train", *DIGITS, "--steps", 600, "--out", tmp_path, "--resume")
    process = start(*arguments)
    deadline = time.monotonic() + 100
    while not (tmp_path / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(kind)
    returned, _, err = finish(process)
    assert returned == code and "Traceback" not in err
    step = checkpoint.load(tmp_path / CHECKPOINT)["step"]
    assert 0 < step < 600
    if kind == signal.SIGINT:
        assert f"stopped at step {step}; --resume continues" in err
    returned, out, err = finish(start(*arguments))
    assert returned == 0, err
    assert f"from step {step}" in out
    found = parameters(tmp_path)
    assert found.keys() == whole_run.keys()
    assert all(torch.equal(found[name], whole_run[name]) for name in found)


@pytest.mark.slow
def test_torchrun_shares_each_batch_between_two_processes(tmp_path):
    shared = ("train", "diabetes", "--method", "node", "--device", "cpu", "--steps", 8)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    two = start(*shared, "--out", tmp_path / "two", launcher=torchrun)
    code, out, err = finish(two)
    assert code == 0, err
    assert out.count("solver") == 1, "only one process reports"
    assert sorted(os.listdir(tmp_path / "two")) == [CHECKPOINT, METRICS]
    assert cli.main([*map(str, shared), "--out", str(tmp_path / "one")]) == 0
    runs = [json.loads((tmp_path / name / METRICS).read_text()) for name in ("one", "two")]
    assert [run["config"]["processes"] for run in runs] == [1, 2]
    losses = [[row["total"] for row in run["history"]] for run in runs]
    # Adaptive steps are chosen per half batch, so the losses agree to the solver's tolerance.
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    # The two processes were still of one mind at the end of their simulation-free run.
    shared = ("train", "diabetes", "--device", "cpu", "--steps", 8, "--out", tmp_path / "free")
    code, out, err = finish(start(*shared, launcher=torchrun))
    assert code == 0, err


def test_info_tells_versions_and_what_is_active(capsys):
    assert cli.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and torch.__version__ in out
    state = "active" if extension.AVAILABLE else "inactive"
    assert re.search(rf"^C\+\+ kernels +{state} .*{re.escape(extension.REASON)}", out, re.M)
    assert re.search(r"^Triton kernels +(in)?active", out, re.M)
    assert re.search(r"^compiler +\S", out, re.M)


def test_python_m_fastnode_is_the_command_line():
    code, out, err = finish(start("info"))
    assert code == 0 and "torch" in out and err == ""


def test_info_names_the_reason_without_the_extension(monkeypatch, capsys):
    monkeypatch.setattr(extension, "AVAILABLE", False)
    monkeypatch.setattr(extension, "REASON", "not built: no compiler")
    assert cli.main(["info"]) == 0
    assert re.search(r"C\+\+ kernels +inactive \(not built: no compiler\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("dance",), "dance"),
        (("train", "digits"), "--out"),
        (("train", "iris", "--out", "x"), "unknown dataset 'iris'; expected one of: digits"),
        (("train", "digits", "--out", "x", "--method", "sde"), "unknown method 'sde'; expected"),
        (("train", "digits", "--out", "x", "--path", "bent"), "unknown path 'bent'"),
        (("train", "digits", "--out", "x", "--split", "1"), "digits has one split only"),
        (("train", "digits", "--out", "x", "--steps", "0"), "steps must be 1 or more, got 0"),
        (("train", "digits", "--out", "x", "--steps", "many"), "invalid int value: 'many'"),
        (("train", "digits", "--out", "x", "--batch", "0"), "batch must be 1 or more, got 0"),
        (("train", "digits", "--out", "x", "--lr", "-1"), "lr must be positive and finite"),
        (("train", "digits", "--out", "x", "--eval-every", "0"), "eval_every must be 1"),
        (("train", "digits", "--out", "x", "--checkpoint-every", "0"), "checkpoint_every must"),
        (("train", "digits", "--out", "x", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("evaluate", "nothing.pt"), "nothing.pt"),
    ],
)
def test_wrong_arguments_give_one_line_and_no_file(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert os.listdir(tmp_path) == []


def test_files_that_cannot_be_used_give_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTNODE_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_text("")
    train = ("train", *DIGITS, "--steps", "2", "--out")
    assert "cannot make the folder" in fails(capsys, *train, tmp_path / "mnist.npz")
    assert "put uci/boston.npz into" in fails(capsys, "train", "uci/boston", "--out", tmp_path)
    assert "not an npz file" in fails(capsys, "train", "mnist", "--out", tmp_path)
    assert "not a checkpoint" in fails(capsys, "evaluate", tmp_path / "mnist.npz")
    assert os.listdir(tmp_path) == ["mnist.npz"]


def test_a_folder_that_is_read_only_gives_one_line(capsys):
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, the one folder that even root cannot write")
    assert "/proc/self" in fails(capsys, "train", *DIGITS, "--out", "/proc/self")


def test_train_refuses_a_folder_with_other_settings(tmp_path, capsys):
    train = ("train", *DIGITS, "--out", str(tmp_path), "--steps")
    assert cli.main([*train, "3"]) == 0
    before = (tmp_path / CHECKPOINT).read_bytes()
    capsys.readouterr()
    assert "holds a run already" in fails(capsys, *train, "3")
    assert "steps 2 instead of 3" in fails(capsys, *train, "2", "--resume")
    assert "seed 1 instead of 0" in fails(capsys, *train, "4", "--resume", "--seed", "1")
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_resume_with_more_steps_goes_on(tmp_path, capsys):
    train = ("train", *DIGITS, "--out", str(tmp_path), "--steps")
    assert cli.main([*train, "3"]) == 0
    assert cli.main([*train, "5", "--resume"]) == 0
    assert "from step 3" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / CHECKPOINT)["step"] == 5


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"fastnode {fastnode.__version__}\n"


@pytest.mark.slow
def test_a_second_run_into_a_new_folder_is_refused(tmp_path):
    first = start("train", *DIGITS, "--steps", 4000, "--out", tmp_path / "run")
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / METRICS).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    code, out, err = finish(start("train", *DIGITS, "--steps", 3, "--out", tmp_path / "run"))
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "run is in use by another run; choose another folder" in err
    first.send_signal(signal.SIGKILL)
    assert finish(first)[0] == -9
    # A lock does not outlive the process that was killed.
    again = ("train", *DIGITS, "--steps", 4000, "--out", tmp_path / "run", "--resume")
    process = start(*again)
    title = process.stdout.readline()
    process.kill()
    finish(process)
    assert title.startswith("digits (scikit-learn), simfree, cpu")


def write_flowers(path):
    """Sixty rows of two measures, which distinguish three kinds."""
    lines = ["length,width,kind"]
    for i in range(60):
        kind = i % 3
        lines.append(
            f"{kind + 0.01 * (i % 7)},{2 - kind + 0.01 * (i % 5)},{('oak', 'elm', 'fir')[kind]}"
        )
    path.write_text("\n".join(lines) + "\n")


def test_a_csv_file_is_trained_evaluated_and_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_flowers(tmp_path / "my.csv")
    train = ["train", "my.csv", "--target", "kind", "--device", "cpu", "--out", "run"]
    assert cli.main([*train, "--steps", "200"]) == 0
    trained = capsys.readouterr().out.splitlines()
    title = f"table ({tmp_path / 'my.csv'}), classification of 'kind', 3 classes, simfree"
    assert trained[0] == f"{title}, cpu"
    # From any folder.
    monkeypatch.chdir("/")
    assert cli.main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    evaluated = capsys.readouterr().out.splitlines()
    assert evaluated[0].startswith(f"{title}, step ") and evaluated[1:] == trained[1:]
    # Without the data that it was trained on.
    (tmp_path / "my.csv").rename(tmp_path / "new.csv")
    (tmp_path / "rows.csv").write_text("name,width,length\nx,2,0\ny,0,2\nz,1,1\n")
    out = tmp_path / "deep" / "pred.csv"
    for solver, name in ((), "euler-1"), (("--solver", "dopri5"), "dopri5"):
        arguments = [str(tmp_path / "run"), str(tmp_path / "rows.csv"), "--out", str(out), *solver]
        assert cli.main(["predict", *arguments]) == 0
        assert out.read_text() == "kind\noak\nfir\nelm\n"
        assert capsys.readouterr().out == f"3 predictions of 'kind' by {name} in {out}\n"
    assert "my.csv: no such file" in fails(capsys, "evaluate", tmp_path / "run")


def test_an_npz_file_is_trained_resumed_and_predicted(tmp_path, capsys):
    x = np.random.RandomState(0).randn(70, 2)
    np.savez(tmp_path / "my.npz", x=x, y=10 + 5 * x[:, 0])
    train = ["train", str(tmp_path / "my.npz"), "--device", "cpu", "--method", "node", "--out"]
    assert cli.main([*train, str(tmp_path / "run"), "--steps", "60"]) == 0
    assert "regression of 'y', node, cpu" in capsys.readouterr().out
    assert cli.main([*train, str(tmp_path / "run"), "--steps", "80", "--resume"]) == 0
    assert cli.main([*train, str(tmp_path / "whole"), "--steps", "80"]) == 0
    found, wanted = (parameters(tmp_path / name) for name in ("run", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    np.savez(tmp_path / "new.npz", x=np.zeros((3, 2)))
    predict = ["predict", str(tmp_path / "run"), str(tmp_path / "new.npz"), "--out"]
    assert cli.main([*predict, str(tmp_path / "pred.csv")]) == 0
    lines = (tmp_path / "pred.csv").read_text().splitlines()
    assert lines[0] == "y" and [float(line) for line in lines[1:]] == pytest.approx([10] * 3, abs=2)
    assert "by dopri5" in capsys.readouterr().out
    np.savez(tmp_path / "my.npz", x=x, y=10 + 4 * x[:, 0])
    changed = "my.npz has changed"
    assert changed in fails(capsys, *train, tmp_path / "run", "--steps", "80", "--resume")
    assert changed in fails(capsys, "evaluate", tmp_path / "run")


def test_wrong_files_of_ones_own_give_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_flowers(tmp_path / "my.csv")
    train = ("train", "my.csv", "--out", "run")
    assert "one of: length, width, kind; got 'age'" in fails(capsys, *train, "--target", "age")
    assert "one of: length, width, kind; got None" in fails(capsys, *train)
    assert "column 'kind': 'oak' is no number" in fails(capsys, *train, "--target", "width")
    wrong = (*train, "--target", "kind", "--task")
    assert "task must be" in fails(capsys, *wrong, "rank")
    assert "'oak' is no number" in fails(capsys, *wrong, "regression")
    assert "none.csv: no such file" in fails(capsys, "train", "none.csv", "--out", "run")
    assert "for a .csv or .npz file" in fails(
        capsys, "train", *DIGITS, "--target", "y", "--out", "r"
    )
    assert os.listdir() == ["my.csv"]
    assert cli.main([*wrong, "classification", "--steps", "2"]) == 0
    assert cli.main(["train", *DIGITS, "--steps", "2", "--out", "digits"]) == 0
    capsys.readouterr()
    predict = ("predict", "run", "my.csv", "--out")
    assert "another file than the data, got my.csv" in fails(capsys, *predict, "my.csv")
    assert "solver must be one of euler-1" in fails(capsys, *predict, "p.csv", "--solver", "rk4")
    assert "must be a .csv or .npz" in fails(capsys, "predict", "run", "digits", "--out", "p.csv")
    assert "was trained on digits" in fails(capsys, "predict", "digits", "my.csv", "--out", "p.csv")
    assert "nothing" in fails(capsys, "predict", "nothing", "my.csv", "--out", "p.csv")
    state = checkpoint.load("run/checkpoint.pt")
    for odd in (3, {}, state["table"] | {"x_mean": [1.0]}, state["table"] | {"classes": ["a"]}):
        checkpoint.save(Path("run/checkpoint.pt"), state | {"table": odd})
        assert "is not a valid checkpoint" in fails(capsys, *predict, "p.csv")
    assert sorted(os.listdir()) == ["digits", "my.csv", "run"]


def test_damaged_and_hostile_checkpoints_give_one_line(tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    assert cli.main(["train", *DIGITS, "--out", str(tmp_path), "--steps", "2"]) == 0
    path = tmp_path / CHECKPOINT
    state = checkpoint.load(path)
    capsys.readouterr()
    resume = ("train", *DIGITS, "--out", tmp_path, "--steps", "2", "--resume")
    torch.save(state | {"config": Hostile()}, path)
    assert "damaged or not a checkpoint" in fails(capsys, "evaluate", path)
    assert "damaged or not a checkpoint" in fails(capsys, *resume)
    assert not (tmp_path / "executed").exists()
    state["config"]["dataset"] = "../../etc/passwd"
    torch.save(state, path)
    assert "unknown dataset '../../etc/passwd'" in fails(capsys, "evaluate", path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged or not a checkpoint" in fails(capsys, "evaluate", path)
    assert "damaged or not a checkpoint" in fails(capsys, *resume)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug():
        raise KeyError("bug")

    monkeypatch.setattr("fastnode.cli.info.describe", bug)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["info"])


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    train = ["train", *DIGITS, "--steps", "2", "--out"]
    line = r"step 2/2  loss \S+  [\d,]+ samples/s\n"
    assert cli.main([*train, str(tmp_path / "file")]) == 0
    assert re.search(line, capsys.readouterr().err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main([*train, str(tmp_path / "terminal")]) == 0
    assert re.search(r"2/2 .*loss \S+, [\d,]+ samples/s", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main([*train, str(tmp_path / "no tqdm")]) == 0
    assert re.search(line, capsys.readouterr().err)


@pytest.mark.slow
def test_the_command_line_imports_nothing_it_does_not_need():
    code = (
        "import sys, fastnode.cli; "
        "print([m for m in ('sklearn', 'pooch', 'matplotlib', 'triton', "
        "'fastnode.training', 'fastnode.datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert found.stdout.strip() == "[]", found.stderr


def test_regularised_training_repeats_its_parameters(tmp_path, capsys):
    settings = ["--method", "node", "--regularizer", "local-biased", "--regularizer-weight", "2"]
    settings += ["--regularizer-weight-end", "1", "--steps", "6"]
    for out, extra in (("one", []), ("two", ["--resume"])):
        assert cli.main(["train", *DIGITS, *settings, "--out", str(tmp_path / out), *extra]) == 0
    one, two = (parameters(tmp_path / out) for out in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "digits" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "one")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--regularizer", "rnode"], "needs method 'node'"),
        (["--method", "node", "--regularizer", "l2"], "regularizer must be one of"),
        (["--method", "node", "--regularizer-weight", "1"], "needs a regularizer"),
        (
            ["--method", "node", "--regularizer", "rnode", "--regularizer-weight", "-1"],
            "must be at least 0, got -1.0",
        ),
    ],
)
def test_wrong_regularisers_are_errors(tmp_path, capsys, arguments, words):
    assert words in fails(capsys, "train", *DIGITS, *arguments, "--out", tmp_path / "run")


def test_control_c_ends_a_command_in_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_info", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "fastnode: interrupted\n"

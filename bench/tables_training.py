"""Tables of gradients and training, each from committed results."""

from __future__ import annotations

from statistics import mean

from bench.measured import number, power, source, table, tiny
from bench.results_file import Results


@source
def flow(results: Results) -> str:
    names = ("plain", "compile", "compile, field fused")
    rows = [
        [case, *(number(results.ratio("flow", "flow step", case, name)) for name in names)]
        for case in results.cases("flow", "flow step")
    ]
    head = [
        "shape",
        "plain PyTorch",
        "torch.compile, opaque field",
        "torch.compile, field fused in",
    ]
    return table(head, rows)


@source
def training_steps(results: Results) -> str:
    """Rows of bench_training.py: all that is compared with torch.compile too."""
    names = ("plain", "compile", "compile, optimizer too")
    rows = [
        [
            row["case"],
            "yes" if row["compiled"] else "no",
            f"{row['microseconds']:,.0f}",
            *(number(row["ratios"][name]) for name in names),
        ]
        for row in results.read("training").benchmarks
        if row["subject"] == "training step"
    ]
    head = [
        "inputs, latent, hidden, batch",
        "compiled",
        "us a step",
        "plain PyTorch",
        "torch.compile of the loss",
        "and of the optimiser",
    ]
    return table(head, rows)


@source
def training_others(results: Results) -> str:
    """The same for images and through a solver, which run eagerly."""
    rows = [
        [row["subject"].partition(", ")[2], row["case"], name, number(row["ratios"][name])]
        for row in results.read("training").benchmarks
        if row["subject"] != "training step"
        for name in row["ratios"]
        if not name.startswith("fastnode")
    ]
    return table(["what", "size", "reference", "how many times longer"], rows)


@source
def cnf(results: Results) -> str:
    names = ("native", "torchdiffeq", "torchdiffeq, adjoint", "diffrax, compiled")
    rows = [
        [
            row["subject"],
            row["case"],
            *(number(row["ratios"][name]) if name in row["ratios"] else "" for name in names),
        ]
        for row in results.read("cnf").benchmarks
    ]
    return table(["what", "flow, batch", *names], rows)


@source
def uci(results: Results) -> str:
    solvers = ("euler-1", "dopri5")
    rows = []
    found = results.read("uci").rows
    for name in dict.fromkeys(row["set"] for row in found):
        cells = [
            mean(
                row["rmse"][solver]
                for row in found
                if (row["set"], row["method"]) == (name, method)
            )
            for solver in solvers
            for method in ("simfree", "node")
        ]
        rows.append([name, *(f"{x:.3f}" for x in cells)])
    head = ["set", "simfree, Euler 1", "NODE, Euler 1", "simfree, dopri5", "NODE, dopri5"]
    return table(head, rows)


@source
def uci_winners(results: Results) -> str:
    found = results.read("uci").rows
    sets = list(dict.fromkeys(row["set"] for row in found))

    def error(name: str, method: str, solver: str) -> float:
        mine = [row for row in found if (row["set"], row["method"]) == (name, method)]
        return mean(row["rmse"][solver] for row in mine)

    parts = []
    for solver, words in (("euler-1", "one Euler step"), ("dopri5", "dopri5")):
        won = [x for x in sets if error(x, "simfree", solver) < error(x, "node", solver)]
        parts.append(f"on {len(won)} of {len(sets)} ({', '.join(won)}) with {words}")
    return f"Training without simulation is the more accurate {', '.join(parts)}."


@source
def training_nfe(results: Results) -> str:
    found = results.read("uci").rows
    counts = {
        method: [row["nfe_per_step"] for row in found if row["method"] == method]
        for method in ("simfree", "node")
    }
    node = counts["node"]
    return (
        f"Evaluations of the field per training step in these runs: {max(counts['simfree']):.0f} "
        f"without simulation, {min(node):.1f} to {max(node):.1f} through the solver."
    )


@source
def demo_digits(results: Results) -> str:
    run = results.read("demo")
    lines = []
    for row in run.rows:
        if row["part"] != "digits":
            continue
        name = {"simfree": "simfree", "node": "NODE", "torchdiffeq": "NODE by torchdiffeq"}
        rate = f"{row['samples_per_second']:,.0f}"
        if "accuracy" not in row:
            lines.append([name[row["method"]], "", "", rate, "", ""])
            continue
        scores = [f"{100 * row['accuracy'][solver]:.1f} %" for solver in ("euler-1", "dopri5")]
        nfe = f"{row['nfe_per_step']:.1f}"
        lines.append([name[row["method"]], str(row["steps"]), nfe, rate, *scores])
    head = ["trained by", "steps", "evaluations a step", "samples/s", "one Euler step", "dopri5"]
    return f"{table(head, lines)}\n\n{run.machine}."


@source
def demo_regression(results: Results) -> str:
    run = results.read("demo")
    lines = []
    for row in run.rows:
        if row["part"] != "regression":
            continue
        name = {"simfree": "simfree", "node": "NODE"}[row["method"]]
        scores = [f"{row['rmse'][solver]:.3f}" for solver in ("euler-1", "euler-10", "dopri5")]
        lines.append([name, str(row["steps"]), f"{row['nfe_per_step']:.1f}", *scores])
    head = ["trained by", "steps", "evaluations a step", "one Euler step", "ten", "dopri5"]
    spread = run.head["regression_std"]
    return f"{table(head, lines)}\n\nWhat predicts the mean has an RMSE of {spread:.3f}."


ADJOINTS = ("backprop", "checkpoint", "revolve(4)", "reversible", "continuous")


@source
def adjoint_times(results: Results) -> str:
    rows = []
    for case in results.cases("gradients", "gradient, backprop"):
        row = [case]
        for adjoint in ADJOINTS:
            ratios = results.row("gradients", f"gradient, {adjoint}", case)["ratios"]
            rival = next(ratio for name, ratio in ratios.items() if name.startswith("torchdiffeq"))
            own = "" if adjoint == "backprop" else f" ({number(1 / ratios['backprop'])})"
            row.append(f"{number(rival)}{own}")
        rows.append(row)
    return table(["(state, hidden, batch)", *ADJOINTS], rows)


@source
def adjoint_one_sample(results: Results) -> str:
    place = ("gradient, continuous", "(512, 512, 1)")
    found = results.ratio("gradients", *place, "torchdiffeq adjoint")
    return (
        f'With one sample at (512, 512, 1) `"continuous"` is {number(found)} times faster than '
        f"`odeint_adjoint`, which carries all parameters inside the state."
    )


@source
def adjoint_memory(results: Results) -> str:
    names = (*ADJOINTS, "torchdiffeq backprop")
    found = [results.row("work", "memory over interval", name)["megabytes"] for name in names]
    rows = [[end.removeprefix("t = "), *(f"{each[end]:.0f}" for each in found)] for end in found[0]]
    return table(["end", *names], rows)


CONTRACTED = ("image from reverse solve", "checkpoint", "Revolve(slots=4)", "reversible")


@source
def contraction(results: Results) -> str:
    found = [row for row in results.read("contraction").rows if row["method"] == "dopri5"]
    names = (*CONTRACTED, "continuous")
    rows = [[f"{row['end']:g}", *(tiny(row[name]) for name in names)] for row in found]
    return table(["end", *names], rows)


@source
def contraction_few(results: Results) -> str:
    found = {
        row["dtype"]: row for row in results.read("contraction").rows if row["method"] == "heun2"
    }
    rows = [
        [label, *(tiny(found[dtype][name]) for dtype in ("float64", "float32"))]
        for label, name in (
            ("image from reverse solve", CONTRACTED[0]),
            ("`checkpoint`", "checkpoint"),
            ("`Revolve(4)`", "Revolve(slots=4)"),
            ("`continuous`", "continuous"),
        )
    ]
    return table(["five steps of heun2 to t = 12", "float64", "float32"], rows)


@source
def regularizers(results: Results) -> str:
    found = results.row("regularizers", "regularised training step", "(64, 128, 128)")["ratios"]
    rows = [[f"`{name}`", number(ratio)] for name, ratio in found.items()]
    return table(["regulariser", "time of a training step, 1 without one"], rows)


@source
def local_cost(results: Results) -> str:
    rows = []
    for engine in ("fused", "module"):
        subjects = [f"local {mode}, {engine}" for mode in ("unbiased", "biased")]
        for case in results.cases("local", subjects[0]):
            found = [results.row("local", subject, case) for subject in subjects]
            costs = [f"{100 / each['ratios']['without'] - 100:.1f} %" for each in found]
            nfe = str(found[0]["evaluations"]["without"])
            kind = "MLP, fused engine" if engine == "fused" else "module, native engine"
            rows.append([case, kind, nfe, *costs])
    return table(["field", "solved as", "evaluations", "unbiased", "biased"], rows)


@source
def local_memory(results: Results) -> str:
    rows = []
    for mode in ("unbiased", "biased"):
        found = results.row("local", f"memory, local {mode}", "784-100-784")
        for end, count in found["steps"].items():
            ours, without = (
                f"{found[name][end]:.0f}" for name in ("megabytes", "reference_megabytes")
            )
            rows.append([mode, str(count), ours, without])
    return table(["mode", "accepted steps", "with, MB", "without, MB"], rows)


@source
def four_pairs(results: Results) -> str:
    rows = [
        [
            row["name"],
            f"{row['right_one_step']} of 4",
            f"{row['right_dopri5']} of 4",
            str(row["nfe"]),
        ]
        for row in results.read("four_pairs").rows
    ]
    return table(["model", "right pairs, one Euler step", "dopri5", "its evaluations"], rows)


@source
def precision(results: Results) -> str:
    rows = [
        [
            power(row["tolerance"]),
            *(f"{row['error'][dtype]:.1e}" for dtype in ("float32", "float64")),
            *(str(row["evaluations"][dtype]) for dtype in ("float32", "float64")),
        ]
        for row in results.read("precision").rows
    ]
    head = ["tolerance", "E, float32", "E, float64", "evaluations, float32", "float64"]
    return table(head, rows)


@source
def local_mnist(results: Results) -> str:
    def scores(variant: str) -> list[dict[str, float]]:
        found = results.read("reproduce").rows
        mine = [row for row in found if row["name"].startswith(f"mnist-local-{variant}-")]
        return [row["results"]["solvers"]["tsit5"] for row in mine if row.get("finished")]

    rows = []
    for variant in ("vanilla", "unbiased", "biased"):
        found = scores(variant)
        accuracy = 100 * mean(score["accuracy"] for score in found)
        nfe = mean(score["nfe"] for score in found)
        rows.append([variant, f"{nfe:.1f}", f"{accuracy:.2f} %", str(len(found))])
    return table(["MNIST", "evaluations", "accuracy", "runs"], rows)

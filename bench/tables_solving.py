"""Tables of solves, each from committed results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean

from bench.measured import number, power, source, table
from bench.results_file import Results


@source
def device(results: Results) -> str:
    return f"Device: {results.read('odeint').machine}."


@source
def readme(results: Results) -> str:
    rows = []
    for case in results.cases("fused", "forward tanh, 2 threads"):
        if case not in results.cases("odeint", "dopri5 tanh"):
            continue
        fused = [
            results.ratio("fused", f"{part} tanh, 2 threads", case, rival)
            for part in ("forward", "forward + backward")
            for rival in ("torchdiffeq", "diffrax, jitted")
        ]
        same = results.ratio("odeint", "dopri5 tanh", case, "torchdiffeq")
        rows.append([case, *map(number, (same, *fused))])
    head = [
        "(state, hidden, batch)",
        "same program: torchdiffeq",
        "fused: torchdiffeq",
        "diffrax",
        "fused, with gradients: torchdiffeq",
        "diffrax",
    ]
    return f"{table(head, rows)}\n\n{results.read('fused').machine}."


@source
def odeint(results: Results) -> str:
    cases = results.cases("odeint", "dopri5 tanh")
    measured = results.row("odeint", "dopri5 tanh", cases[0])["ratios"]
    optional = ("torchode, compiled", "torchdyn", "diffrax, compiled")
    rivals = [name for name in optional if name in measured]
    rows = [
        [
            case,
            number(results.ratio("odeint", "dopri5 tanh", case, "torchdiffeq")),
            number(results.ratio("odeint", "dopri5 silu", case, "torchdiffeq")),
            *(number(results.ratio("odeint", "dopri5 tanh", case, name)) for name in rivals),
        ]
        for case in cases
    ]
    names = (f"{name.removesuffix(', compiled')}, tanh" for name in rivals)
    return table(["(state, hidden, batch)", "torchdiffeq, tanh", "SiLU", *names], rows)


@source
def overhead(results: Results) -> str:
    spans = {}
    for method in ("dopri5", "rk4"):
        subject = f"{method} overhead per evaluation"
        found = [
            results.ratio("odeint", subject, case, "torchdiffeq")
            for case in results.cases("odeint", subject)
        ]
        spans[method] = f"{number(min(found))} to {number(max(found))}"
    return (
        "What the library itself costs per evaluation, the field's own time taken off, is "
        f"{spans['dopri5']} times less than torchdiffeq's for dopri5 and {spans['rk4']} times less "
        "for rk4 (states of 2 to 512, batches of 1 to 1024)."
    )


@source
def fused(results: Results) -> str:
    rows = []
    for case in results.cases("fused", "forward tanh, 2 threads"):
        row = [case]
        for part in ("forward", "forward + backward"):
            for rival in ("torchdiffeq", "diffrax, jitted"):
                tanh, silu = (
                    results.ratio("fused", f"{part} {name}, 2 threads", case, rival)
                    for name in ("tanh", "silu")
                )
                row.append(f"{number(tanh)} ({number(silu)})")
        rows.append(row)
    head = [
        "(state, hidden, batch)",
        "forward: torchdiffeq",
        "diffrax",
        "with backward: torchdiffeq",
        "diffrax",
    ]
    return table(head, rows)


@source
def fused_peak(results: Results) -> str:
    shares = [
        results.row("fused", f"forward tanh, {n} threads", "(512, 512, 1024)")["share_of_fma_peak"]
        for n in (2, 1)
    ]
    both, one = (f"{100 * share:.0f} %" for share in shares)
    return (
        f"The forward pass of the last row runs at {both} of the measured peak of multiplications "
        f"and additions of both cores; on one thread at {one}."
    )


@source
def fused_bound(results: Results) -> str:
    rows = []
    for case in results.cases("fused", "forward tanh, 2 threads"):
        row = [case]
        for part in ("forward", "forward + backward"):
            subject = f"{part} tanh, 2 threads"
            found = results.row("fused", subject, case)
            smallest = results.row("fused", subject, "(2, 16, 1)")["microseconds"]
            theirs = found["reference_microseconds"]["torchdiffeq"]
            least = smallest + (found["least_microseconds"] if case != "(2, 16, 1)" else 0)
            products = found["reference_microseconds"]["its products alone, by torch"]
            row += [number(theirs / x) for x in (found["microseconds"], least, products)]
        rows.append(row)
    found = results.row("fused", "forward + backward tanh, 2 threads", "(2, 16, 1)")
    layer = found["reference_microseconds"]["one layer of torch, without a solve"]
    bounds = ["at most", "products by torch"]
    head = ["(state, hidden, batch)", "forward", *bounds, "with backward", *bounds]
    return (
        f"{table(head, rows)}\n\nForward and backward pass of the first row take "
        f"{found['microseconds']:.0f} us, those of one linear layer of the same size in torch "
        f"{layer:.0f} us: what is left is autograd's."
    )


@source
def fused_fixed(results: Results) -> str:
    rows = []
    for case in results.cases("fused", "rk4 by odeint, ten steps"):
        row = [case]
        for face in ("odeint", "solve"):
            subject = f"rk4 by {face}, ten steps"
            for rival in ("torchdiffeq", "native engine"):
                row.append(number(results.ratio("fused", subject, case, rival)))
        rows.append(row)
    head = [
        "(state, hidden, batch)",
        "odeint: torchdiffeq",
        "native",
        "solve: torchdiffeq",
        "native",
    ]
    return table(head, rows)


@source
def fused_activations(results: Results) -> str:
    parts = [f"{part} (16, 64, 128), 2 threads" for part in ("forward", "forward + backward")]
    rows = [
        [case, *(number(results.ratio("fused", part, case, "torchdiffeq")) for part in parts)]
        for case in results.cases("fused", parts[0])
    ]
    return table(["activation", "forward", "with backward"], rows)


@source
def fused_memory(results: Results) -> str:
    rows = []
    for found in results.read("fused_memory").rows:
        end = found["subject"].rpartition("= ")[2]
        ours, theirs = found["megabytes"], found["reference_megabytes"]
        rows.append([found["case"], end, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.3f}"])
    head = ["(state, hidden, batch)", "end", "fused, MB", "torchdiffeq backprop, MB", "share"]
    return table(head, rows)


@source
def engines(results: Results) -> str:
    rows = []
    for case in results.cases("engines", "engines, forward"):
        row = [case]
        for part in ("forward", "forward + backward"):
            found = results.row("engines", f"engines, {part}", case)
            times = [found["microseconds"], *found["reference_microseconds"].values()]
            native, reference, fused = (x / times[1] for x in times)
            row += [number(reference / native), number(reference / fused)]
        rows.append(row)
    head = ["(state, hidden, batch)", "native", "fused", "with gradients: native", "fused"]
    return table(head, rows)


@source
def adams(results: Results) -> str:
    subjects = ("explicit_adams", "implicit_adams", "fixed_adams")
    rows = [
        [case, *(number(results.ratio("adams", name, case, "torchdiffeq")) for name in subjects)]
        for case in results.cases("adams", subjects[0])
    ]
    return table(["(state, hidden, batch)", *subjects], rows)


@source
def fields(results: Results) -> str:
    rows = []
    for threads in ("", ", 2 threads"):
        for case in results.cases("fields", f"compiled field, forward{threads}"):
            row = [case + threads]
            for part in ("forward", "forward + backward"):
                found = results.row("fields", f"compiled field, {part}{threads}", case)
                ratios, count = found["ratios"], found["evaluations"]
                names = ["native", "native, checkpoint", "torchdiffeq"]
                if part == "forward":
                    names.remove("native, checkpoint")
                row += [number(ratios[name]) if name in ratios else "" for name in names]
                # Its controller takes other steps: time for each evaluation.
                each = ratios.get("diffrax", 0) * count["fused"] / count.get("diffrax", 1)
                row.append(number(each) if each else "")
            rows.append(row)
    names = ["torchdiffeq", "diffrax, each evaluation"]
    head = [
        "field, batch",
        "native",
        *names,
        "with gradients: native",
        "native, checkpoint",
        *names,
    ]
    return table(head, rows)


@source
def fused_adjoints(results: Results) -> str:
    rows = []
    for case in results.cases("engines", "adjoints of the fused engine"):
        ratios = results.row("engines", "adjoints of the fused engine", case)["ratios"]
        rows.append([case, *(number(ratios[name]) for name in ("checkpoint", "revolve(4)"))])
    return table(["(state, hidden, batch)", "checkpoint", "revolve(4)"], rows)


@source
def per_sample(results: Results) -> str:
    rows = []
    for method in ("dopri5", "tsit5"):
        for case in results.cases("per_sample", f"{method} per sample"):
            found = results.row("per_sample", f"{method} per sample", case)
            rows.append(
                [
                    f"{method}, {case.rpartition(', ')[2]}",
                    *(number(found["ratios"][x]) for x in ("torchode", "torchode, compiled")),
                    *(f"{found['evaluations'][x]:,}" for x in ("fastnode", "torchode")),
                    f"{100 * found['ratios']['the field alone']:.0f} %",
                ]
            )
    head = [
        "",
        "torchode",
        "torchode, compiled",
        "our evaluations",
        "torchode's",
        "share of the field",
    ]
    return table(head, rows)


@source
def per_sample_gradients(results: Results) -> str:
    subject = "perceptrons per sample, with gradients"
    names = ("its reference engine", "torchode")
    rows = []
    for case in results.cases("per_sample", subject):
        ratios = results.row("per_sample", subject, case)["ratios"]
        rows.append([case, *(number(ratios[name]) for name in names)])
    return table(["(state, hidden, batch), activation", "reference engine", "torchode"], rows)


def _middle(values: Iterable[float]) -> float:
    logs = [math.log(max(x, 1e-16)) for x in values]
    return math.exp(mean(logs))


@source
def methods(results: Results) -> str:
    found = results.read("detest").rows
    tolerances = sorted({row["tolerance"] for row in found}, reverse=True)
    rows = []
    for method in ("bosh3", "dopri5", "tsit5", "dopri8"):
        cells = [method]
        for tolerance in tolerances:
            mine = [
                row for row in found if (row["method"], row["tolerance"]) == (method, tolerance)
            ]
            work = _middle(row["evaluations"]["fastnode"] for row in mine)
            error = _middle(row["error"]["fastnode"] for row in mine)
            cells.append(f"{work:.0f}: {error:.0e}")
        rows.append(cells)
    return table(["method", *(f"tolerance {power(x)}" for x in tolerances)], rows)


@source
def detest(results: Results) -> str:
    found = results.read("detest").rows
    rows = []
    for method in ("bosh3", "dopri5", "tsit5", "dopri8"):
        mine = [row for row in found if row["method"] == method]
        rival = next(name for name in mine[0]["evaluations"] if name != "fastnode")
        shares = [
            _middle(row[what]["fastnode"] / max(row[what][rival], 1e-16) for row in mine)
            for what in ("evaluations", "error")
        ]
        rows.append([method, rival, *map(number, shares)])
    return table(["method", "against", "evaluations", "error"], rows)


@source
def imports(results: Results) -> str:
    found = {row["module"]: row["milliseconds"] for row in results.read("imports").rows}
    return (
        f"`import fastnode` takes {found['fastnode']:.0f} ms of processor time after torch's own "
        f"{found['torch']:.0f} ms, and imports neither Triton nor Matplotlib."
    )

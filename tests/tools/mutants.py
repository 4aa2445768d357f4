"""Twenty wrong lines, for mutations.py: each changes the result but seldom its looks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A line of ``file`` that says ``new`` where ``old`` stands, once; ``tests`` must notice."""

    name: str
    file: str
    old: str
    new: str
    #: What goes wrong.
    harm: str
    tests: tuple[str, ...]

    @property
    def compiled(self) -> bool:
        return self.file.endswith(".cpp")


TABLEAUS = (
    Mutant(
        "dopri5-stage",
        "fastnode/tableaus/adaptive.py",
        '"49/176", "-5103/18656"',
        '"49/176", "-5103/18657"',
        "a coefficient of dopri5 is wrong in its fifth digit",
        ("tests/tableaus/test_order.py",),
    ),
    Mutant(
        "dopri8-dense",
        "fastnode/tableaus/dopri8.py",
        '"15.24112876939812832309"',
        '"15.24112876949812832309"',
        "dense output of dopri8 is wrong in its twelfth digit",
        ("tests/tableaus/test_order.py",),
    ),
    Mutant(
        "tsit5-error",
        "fastnode/tableaus/tsit5.py",
        '"0.48777052842476157078556425996312282415166"',
        '"0.48777052842476157078556425997312282415166"',
        "the error estimate of tsit5 is wrong in its 28th digit",
        ("tests/tableaus/test_order.py",),
    ),
    Mutant(
        "radau-sign",
        "fastnode/tableaus/implicit.py",
        "Fraction(-2, 225) + s / 75",
        "Fraction(2, 225) + s / 75",
        "a stage of radauIIA5 is at another time",
        ("tests/tableaus/test_order.py",),
    ),
    Mutant(
        "bosh3-stability",
        "fastnode/tableaus/adaptive.py",
        "stability=2.512745326618937",
        "stability=2.512745326618937 / 0.98",
        "stiffness of bosh3 is underestimated by 2 %",
        ("tests/tableaus/test_order.py",),
    ),
)

CONTROLLERS = (
    Mutant(
        "pid-gains",
        "fastnode/control/controllers.py",
        "return p + i + d, -(p + 2 * d), d",
        "return p + i + d, -(p + d), d",
        "the PID controller damps too little",
        ("tests/control/test_controllers.py",),
    ),
    Mutant(
        "pid-history",
        "fastnode/engines/reference/adaptive.py",
        "self._history = (ratio, self._history[0])",
        "self._history = (ratio, self._history[1])",
        "the controller never sees the error before the last one",
        ("tests/engines/native/test_joint.py", "tests/control/test_controllers.py"),
    ),
    Mutant(
        "exact-step",
        "fastnode/control/controllers.py",
        "before, earlier = (max(r, 1e-4) for r in history)",
        "before, earlier = (max(r, 1e-40) for r in history)",
        "after a step that was exact by chance the next one is far too long or short",
        ("tests/control/test_controllers.py",),
    ),
    Mutant(
        "smallest-step",
        "fastnode/control/controllers.py",
        "return ratio <= 1 or (h <= self.min_step and math.isfinite(ratio))",
        "return ratio <= 1 or h <= self.min_step",
        "a smallest step that ends in NaN is accepted",
        ("tests/control/test_controllers.py", "tests/engines/reference/test_adaptive_and_fixed.py"),
    ),
    Mutant(
        "step-cut-short",
        "fastnode/engines/reference/adaptive.py",
        "self.h = max(following, self.h) if taken < self.h else following",
        "self.h = following",
        "a step cut short by a stop makes the next ones short",
        ("tests/engines/native/test_joint.py", "tests/control/test_options.py"),
    ),
)

ADJOINTS = (
    Mutant(
        "continuous-start-time",
        "fastnode/adjoints/continuous/adjoint.py",
        "by_time.append(-_inner(a, field(times[0], solution[0])))",
        "by_time.append(_inner(a, field(times[0], solution[0])))",
        "the gradient of the initial time has the wrong sign",
        ("tests/adjoints/continuous/test_gradients.py", "tests/api/test_odeint_adjoint.py"),
    ),
    Mutant(
        "lost-nan",
        "fastnode/adjoints/continuous/adjoint_norm.py",
        "return state if params <= state else params",
        "return max(state, params)",
        "a parameter gradient that is NaN does not reject the step",
        ("tests/adjoints/continuous/test_adjoint_norm.py",),
    ),
    Mutant(
        "reversible-coupling",
        "fastnode/adjoints/discrete/reversible.py",
        "alpha=1 - COUPLING",
        "alpha=0",
        "the reversible adjoint loses a thousandth of one cotangent",
        ("tests/adjoints/discrete/test_reversible.py",),
    ),
    Mutant(
        "revolve-split",
        "fastnode/adjoints/discrete/revolve.py",
        "return min(most, max(length - rest, comb(s + r - 2, s) if r > 1 else 1))",
        "return length // 2 or 1",
        "checkpoints are set by halves, and steps are recomputed more often than needed",
        ("tests/adjoints/discrete/test_revolve.py",),
    ),
    Mutant(
        "end-of-step",
        "fastnode/adjoints/discrete/checkpoint.py",
        "timed = [(ends[0], kind, at), (ends[1], kind, at + kind)]",
        "timed = [(ends[0], kind, at), (ends[1], kind, at)]",
        "the gradient of the end of a fixed step goes to its start",
        ("tests/adjoints/discrete/test_gradients.py", "tests/control/test_options.py"),
    ),
)

KERNELS = (
    Mutant(
        "error-tail",
        "csrc/kernels/rk/rk_error_cpu.cpp",
        "i < n; ++i, ++lane) squares[lane] += error[i];",
        "i < n; ++i, ++lane) squares[lane] = error[i];",
        "errors of states that fill no whole vectors are too small",
        ("tests/ops/test_rk_error.py",),
    ),
    Mutant(
        "dense-block",
        "csrc/kernels/rk/rk_dense_cpu.cpp",
        "(j == 0 ? y : terms.k[j - 1]) + start;",
        "(j == 0 ? y + start : terms.k[j - 1]);",
        "dense output of long states in 16 bits repeats the terms of their first elements",
        ("tests/ops/test_rk_dense.py",),
    ),
    Mutant(
        "path-velocity",
        "csrc/kernels/flow/interpolant_cpu.cpp",
        "db[i] = half_pi * (kind == 1 ? c : s);",
        "db[i] = half_pi * (kind == 1 ? s : c);",
        "the velocities of two curved paths are exchanged",
        ("tests/ops/test_flow_ops.py", "tests/flow/test_paths.py"),
    ),
    Mutant(
        "nan-in-a-tuple",
        "csrc/driver/arithmetic.cpp",
        "if (!(norm <= largest)) largest = norm;",
        "largest = std::max(largest, norm);",
        "NaN in the second tensor of a tuple is taken for no error",
        ("tests/engines/native/test_joint.py",),
    ),
    Mutant(
        "triton-backward",
        "triton_kernels/interpolant.py",
        "d1 = weigh(gz, gu, coef, 1, 3, rows, B)",
        "d1 = weigh(gz, gu, coef, 1, 2, rows, B)",
        "the gradient of one end of a path has the coefficient of the other",
        ("tests/triton_kernels/test_interpreted.py",),
    ),
)

MUTANTS = (*TABLEAUS, *CONTROLLERS, *ADJOINTS, *KERNELS)

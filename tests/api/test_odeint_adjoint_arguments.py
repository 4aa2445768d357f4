from __future__ import annotations

import warnings

import pytest
import torchdiffeq
from adjoint_cases import Y0, Field, T, decay

import fastnode

LIBRARIES = [fastnode, torchdiffeq]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"func": decay},
        {"func": Field(), "options": {"first_step": 0.1}, "adjoint_method": "rk4"},
        {"func": Field(), "method": "odd"},
    ],
)
def test_both_libraries_refuse(library, arguments):
    with pytest.raises(ValueError):
        library.odeint_adjoint(y0=Y0, t=T, **arguments)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"func": decay, "adjoint_params": ()},
        {"func": Field(), "adjoint_options": {"norm": "seminorm"}},
        {"func": Field(), "adjoint_options": {"norm": lambda parts: parts[0].abs()}},
        {"func": Field(), "adjoint_method": "rk4", "adjoint_rtol": 1e-3, "adjoint_atol": 1e-3},
        {
            "func": Field(),
            "options": {"first_step": 0.1},
            "adjoint_method": "rk4",
            "adjoint_options": {"step_size": 0.1},
        },
    ],
)
def test_both_libraries_take_without_a_warning(library, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.odeint_adjoint(y0=Y0, t=T, **arguments).shape == (3, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_libraries_warn_of_frozen_parameters_with_a_norm(library):
    field = Field()
    field.unused.requires_grad_(False)
    with pytest.warns(UserWarning, match="adjoint"):
        library.odeint_adjoint(field, Y0, T, adjoint_options={"norm": lambda parts: 0.1})


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"adjoint_method": "odd"}, ValueError, "method must be one of"),
        ({"adjoint_options": 3}, TypeError, "adjoint_options must be a dict, got int"),
        ({"adjoint_options": {"norm": "odd"}}, TypeError, "norm in adjoint_options must be"),
        ({"options": {"norm": "seminorm"}}, TypeError, "norm must be callable, got str"),
        ({"adjoint_params": [1.0]}, TypeError, r"adjoint_params\[0\] must be a tensor, got float"),
        ({"func": decay}, ValueError, "func must be an nn.Module .*, got function"),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named(change, kind, words):
    with pytest.raises(kind, match=words):
        fastnode.odeint_adjoint(**{"func": Field(), "y0": Y0, "t": T, **change})

"""The request as C++ has it (csrc/ops/mlp/request.h)."""

from __future__ import annotations

import math
from typing import Any

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.engines.native import joint as native

#: The best instruction set of this machine, or the one that tests force.
INSTRUCTIONS = extension.native().mlp_instruction_sets()[-1] if extension.AVAILABLE else 0


def native_request(request: SolveRequest) -> Any:
    """Made once for each request."""
    made = request.derived.get("mlp")
    if made is None or request.derived["instructions"] != INSTRUCTIONS:
        hook = request.on_step
        # In the order of MlpRequest's members.
        made = request.derived["mlp"] = extension.native().MlpRequest(
            request.method,
            float(request.rtol),
            float(request.atol),
            native.control_numbers(request.controller) if request.adaptive else (),
            request.first_step,
            request.max_num_steps,
            request.all_together,
            request.fixed is not None and request.fixed.perturb,
            request.record,
            hasattr(hook, "take_states"),
            request.adjoint,
            request.slots,
            INSTRUCTIONS,
        )
        request.derived["instructions"] = INSTRUCTIONS
    return made


def packed_request(request: SolveRequest) -> tuple[list[float], list[int]]:
    """``numbers`` and ``settings`` of the op (csrc/ops/mlp/request.h), in a graph of torch.compile,
    which knows no object of C++."""
    first = math.nan if request.first_step is None else request.first_step
    control = native.control_numbers(request.controller) if request.adaptive else ()
    perturb = request.fixed is not None and request.fixed.perturb
    settings = [request.max_num_steps, int(request.all_together), int(perturb), 0, 0, 0, 0]
    return [float(request.rtol), float(request.atol), first, *control], [*settings, INSTRUCTIONS]

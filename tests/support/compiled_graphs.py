"""What torch.compile records: the ops of the graphs of a function and of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func


def compiled(function: Callable[..., Any], **options: Any) -> tuple[Callable[..., Any], list[str]]:
    """``function`` in one graph, and the names of the ops that it and its gradient turn out to be
    once it is called."""
    names: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    torch.compiler.reset()
    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    return torch.compile(function, fullgraph=True, backend=backend, **options), names


def own_ops(names: list[str]) -> list[str]:
    return [name for name in names if "fastnode" in name]

"""Solves that torch.compile cannot record: one break of the graph, and the loop as it is.

In a module of its own because torch.compiler.disable loads the compiler, which nobody should wait
for who does not compile.
"""

from __future__ import annotations

import torch

from fastnode.odeint import run

run_outside_graph = torch.compiler.disable(run)

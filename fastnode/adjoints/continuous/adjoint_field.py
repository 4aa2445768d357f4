"""The right-hand side of the continuous adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode import extension
from fastnode.adjoints.continuous.quadrature import Integrand, Quadrature
from fastnode.problem.ivp import Problem
from fastnode.torch_support.kept_graph import keeping_graph


class AdjointField:
    """(f, -a^T df/dy) as a function of time and (*y, *a), tensor by tensor.

    With a quadrature, the same call of autograd also gives -a^T df/dp where the quadrature needs
    it. With ``inside``, -a^T df/dp is a further part of the result.
    """

    def __init__(self, problem: Problem, params: Sequence[Tensor], inside: bool = False):
        self.field, self.params, self.inside = problem.field, tuple(params), inside
        self.quadrature: Quadrature | None = None
        plain = all(type(param) in (Tensor, torch.nn.Parameter) for param in self.params)
        native = extension.AVAILABLE and plain
        self._vjp = extension.native().vjp if native else vjp_reference
        self._keeps = True
        #: Those that were frozen since the forward pass have no integrand, as they have no gradient
        #: by backprop.
        self._live = [param for param in self.params if param.requires_grad]
        self._lone = problem.layout.shapes is None
        self._count = 1 if problem.layout.shapes is None else len(problem.layout.shapes)

    def __call__(self, t: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        quadrature = self.quadrature
        if quadrature is not None:
            derivatives, integrand = self.evaluate(t, parts, quadrature.wants())
            quadrature.evaluated(integrand)
            return derivatives
        derivatives, integrand = self.evaluate(t, parts, self.inside)
        return (*derivatives, *self.as_state(integrand)) if self.inside else derivatives

    def evaluate(
        self, t: Tensor, parts: tuple[Tensor, ...], wanted: bool
    ) -> tuple[tuple[Tensor, ...], Integrand]:
        """(*f, *-a^T df/dy), and -a^T df/dp if it is wanted, else ()."""
        field, count = self.field, self._count
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in parts[:count]]
            state = leaves[0] if self._lone else tuple(leaves)
            f = field.parts(field.func(t, state, *field.args))
        inputs = [*leaves, *self._live] if wanted else leaves
        found = self._vjp_of(f, parts[count:], inputs)
        by_y = [
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(leaves, found, strict=False)
        ]
        return (*(x.detach() for x in f), *by_y), self._for_all(found[count:])

    def _vjp_of(
        self, f: Sequence[Tensor], a: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        if not self._keeps:
            return vjp_reference(f, a, inputs, retain_graph=False)
        # Tensors that f holds may have an autograd graph that the next evaluation needs too.
        found, self._keeps = keeping_graph(
            lambda keep: self._vjp(f, a, inputs) if keep else vjp_reference(f, a, inputs, keep)
        )
        return found

    def _for_all(self, integrand: Integrand) -> Integrand:
        """That of ``params`` from that of the live ones."""
        if not integrand or len(self._live) == len(self.params):
            return integrand
        left = iter(integrand)
        return [next(left) if param.requires_grad else None for param in self.params]

    def as_state(self, integrand: Integrand) -> list[Tensor]:
        """Gradients in the state's dtype, complex ones beside a real state as pairs of numbers."""
        rows = []
        for param, term in zip(self.params, integrand or [None] * len(self.params), strict=True):
            row = torch.zeros_like(param) if term is None else term
            if row.is_complex() and not self.field.dtype.is_complex:
                row = torch.view_as_real(row.resolve_conj())
            rows.append(row.to(self.field.dtype))
        return rows

    def from_state(self, rows: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for param, row in zip(self.params, rows, strict=True):
            if param.is_complex():
                found.append(row if row.is_complex() else torch.view_as_complex(row.contiguous()))
            else:
                found.append(row.real if row.is_complex() else row)
        return found


def vjp_reference(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    retain_graph: bool = True,
) -> Sequence[Tensor | None]:
    """-sum_i cotangents_i^T d outputs_i / d inputs; None where an input plays no part."""
    pairs = [(f, -a) for f, a in zip(outputs, cotangents, strict=False) if f.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    roots, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(roots, inputs, weights, retain_graph=retain_graph, allow_unused=True)

"""Newton's method for the stage equations of implicit Runge-Kutta methods, and its derivative.

The unknowns are the derivatives K [m, n] of m stages over a state of n real numbers:

    K_i = F_i(K) = f(t_i, base_i + h sum_j a_ij K_j).

Up to ``DENSE_LIMIT`` unknowns the Newton matrix I - dF/dK is formed and factorised, and kept for
the steps that follow while the iteration contracts well (E. Hairer, G. Wanner, Solving Ordinary
Differential Equations II, 2nd edition, section IV.8). Above it GMRES solves with it, by differences
of F alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.engines.reference.gmres import gmres
from fastnode.errors import NonFiniteState
from fastnode.problem.ivp import Time, VectorField

#: Most unknowns for which the Newton matrix is formed: 2 MB, and 1 to 10 ms to factorise.
DENSE_LIMIT = 512
#: Newton iterations inside torch.func transforms, where convergence cannot be tested; from a guess
#: that converges, each iteration doubles the digits.
TRANSFORMED_ITERS = 10
#: The Newton matrix is recomputed if the contraction is slower than this.
SLOW = 0.2


class StageEquations:
    """F for a group of stages; times and bases may carry gradients."""

    def __init__(
        self,
        field: VectorField,
        points: Sequence[tuple[Time, int]],
        bases: Sequence[Tensor],
        h: Time,
        a: Sequence[Sequence[float]],
    ):
        self.field, self.points, self.bases, self.h, self.a = field, points, bases, h, a

    def state(self, i: int, k: Tensor) -> Tensor:
        total = self.bases[i]
        for weight, derivative in zip(self.a[i], k, strict=True):
            if weight:
                term = self.h * weight * derivative.reshape(total.shape).to(total.dtype)
                # h is a float64 tensor where it has a gradient, and a scalar state follows it.
                total = total + term.to(total.dtype)
        return total

    def derivative(self, i: int, state: Tensor) -> Tensor:
        time, side = self.points[i]
        y = torch.view_as_complex(state) if self.field.dtype.is_complex else state
        f = self.field(time, y, side)
        return torch.view_as_real(f) if f.is_complex() else f

    def __call__(self, k: Tensor) -> Tensor:
        rows = [self.derivative(i, self.state(i, k)).reshape(-1) for i in range(len(self.points))]
        return torch.stack(rows).to(k.dtype)

    def jacobians(self, k: Tensor, differences: bool) -> Tensor:
        """df/dy at each stage, [m, n, n]; by differences if asked to, or if autograd cannot
        differentiate f."""
        found = []
        for i in range(len(self.points)):
            state = self.state(i, k)
            jacobian = None if differences else self._derivative(i, state)
            found.append(self._differences(i, state) if jacobian is None else jacobian)
        return torch.stack(found).to(k.dtype)

    def _derivative(self, i: int, state: Tensor) -> Tensor | None:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = state.detach().clone().requires_grad_()
            f = self.derivative(i, leaf)
            return dense_jacobian(f, leaf) if f.requires_grad else None

    def _differences(self, i: int, state: Tensor) -> Tensor:
        f, flat = self.derivative(i, state), state.reshape(-1)
        width = math.sqrt(torch.finfo(state.dtype).eps)
        columns = []
        for j in range(flat.numel()):
            moved = flat.clone()
            moved[j] += width * (1 + abs(flat[j].item()))
            change = self.derivative(i, moved.reshape(state.shape)) - f
            columns.append(change.reshape(-1) / (moved[j] - flat[j]))
        return torch.stack(columns, dim=1)


def dense_jacobian(image: Tensor, leaf: Tensor) -> Tensor:
    """d image / d leaf, [image.numel(), leaf.numel()]; retains the autograd graph."""
    rows = torch.eye(image.numel(), dtype=image.dtype, device=image.device)
    rows = rows.reshape(-1, *image.shape)

    def vjp(row: Tensor, batched: bool) -> Tensor:
        (grad,) = torch.autograd.grad(
            image, leaf, row, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        size = (len(row), leaf.numel()) if batched else (leaf.numel(),)
        return image.new_zeros(size) if grad is None else grad.detach().reshape(size)

    try:
        return vjp(rows, True)
    except RuntimeError:
        # The backward of some operation in f cannot be batched.
        return torch.stack([vjp(row, False) for row in rows])


class NewtonSolver:
    """Solves the stage equations of one group, step after step of one solve."""

    def __init__(self, a: Sequence[Sequence[float]], max_iters: int):
        self.a = a
        self.reach = max(sum(abs(value) for value in row) for row in a)
        self.max_iters = max_iters
        self._differences = False
        self._jacobians: Tensor | None = None
        self._factors: tuple[float, tuple[Tensor, Tensor]] | None = None

    def solve(
        self, equations: StageEquations, h: float, k: Tensor, size: float, eps: float
    ) -> Tensor | None:
        """K from the guess ``k``, or None if the iteration does not converge.

        Converged is an iterate that the next update would change, in the stages' states, by less
        than a few roundings of ``size``, the state's own magnitude.

        Raises:
            NonFiniteState: F is not finite.
        """
        found = self._iterate(equations, h, k, size, eps)
        if found is None:
            # The derivatives of the step before may have been too poor a guess.
            found = self._iterate(equations, h, equations(torch.zeros_like(k)), size, eps)
        if found is None and not self._differences and k.numel() <= DENSE_LIMIT:
            # autograd's derivative of f may be wrong (a custom backward).
            self._differences, self._jacobians = True, None
            found = self._iterate(equations, h, equations(torch.zeros_like(k)), size, eps)
        return found

    def _iterate(
        self, equations: StageEquations, h: float, k: Tensor, size: float, eps: float
    ) -> Tensor | None:
        dense = k.numel() <= DENSE_LIMIT
        previous, fresh = math.inf, False
        for _ in range(self.max_iters):
            residual = equations(k) - k
            if not math.isfinite(_largest(residual)):
                raise NonFiniteState("the vector field is not finite at a stage of the step")
            if dense:
                update, fresh = self._update(equations, h, k, residual, fresh), False
            else:
                update = self._krylov_update(equations, k, residual)
            k = k + update
            reach = abs(h) * self.reach
            change = reach * _largest(update)
            scale = size + reach * _largest(k)
            if not math.isfinite(change):
                return None
            rate = change / previous
            ahead = change * rate / (1 - rate) if 0 < rate < 1 else math.inf
            if min(change, ahead) <= 4 * eps * scale:
                return k
            if rate > SLOW:
                if change <= 1e3 * eps * scale and rate > 0.5:
                    # The rest is rounding of f itself.
                    return k
                fresh = True
            previous = change
        return None

    def _update(
        self, equations: StageEquations, h: float, k: Tensor, residual: Tensor, fresh: bool
    ) -> Tensor:
        if fresh or self._jacobians is None or self._jacobians.shape[1] != k.shape[1]:
            self._jacobians, self._factors = equations.jacobians(k, self._differences), None
        if self._factors is None or abs(self._factors[0] - h) > 1e-12 * abs(h):
            m, n = k.shape
            a = torch.tensor(self.a, dtype=k.dtype, device=k.device)
            matrix = torch.eye(m * n, dtype=k.dtype, device=k.device).reshape(m, n, m, n)
            matrix = matrix - h * torch.einsum("ij,ipq->ipjq", a, self._jacobians)
            self._factors = h, torch.linalg.lu_factor(matrix.reshape(m * n, m * n))
        return torch.linalg.lu_solve(*self._factors[1], residual.reshape(-1, 1)).reshape(k.shape)

    def _krylov_update(self, equations: StageEquations, k: Tensor, residual: Tensor) -> Tensor:
        image = residual + k
        width = math.sqrt(torch.finfo(equations.bases[0].dtype).eps) * (1 + _largest(k))

        def matrix(v: Tensor) -> Tensor:
            step = width / max(_largest(v), torch.finfo(k.dtype).tiny)
            return v - (equations(k + step * v) - image) / step

        # A coarse solution makes an inexact Newton method; its error decides when it is done.
        return gmres(matrix, residual, 1e-3)[0]


def solve_transformed(equations: StageEquations, like: Tensor, size: Tensor, eps: float) -> Tensor:
    """K [m, n] by operations that torch.func transforms and forward-mode differentiation follow.

    A fixed number of full Newton iterations; K is NaN where they did not converge, as no exception
    may depend on values under a transform. First derivatives are exact: the last iteration is
    differentiated with its matrix held fixed.
    """
    m, n = like.shape
    eye = torch.eye(m * n, dtype=like.dtype, device=like.device)

    def matrix(k: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(equations)(k)
        assert isinstance(jacobian, Tensor)
        return eye - jacobian.reshape(m * n, m * n)

    def update(k: Tensor, matrix: Tensor) -> Tensor:
        return torch.linalg.solve(matrix, (equations(k) - k).reshape(m * n)).reshape(m, n)

    # no_grad alone does not stop forward-mode differentiation.
    with torch.no_grad(), torch.autograd.forward_ad._set_fwd_grad_enabled(False):
        k = equations(torch.zeros_like(like))
        change = torch.zeros_like(k)
        for _ in range(TRANSFORMED_ITERS):
            change = update(k, matrix(k))
            k = k + change
        reach = abs(equations.h) * max(sum(abs(value) for value in row) for row in equations.a)
        allowed = 1e3 * eps * (size + reach * k.abs().amax())
        k = torch.where(reach * change.abs().amax() <= allowed, k, torch.nan)
        # The derivative of linalg.solve itself is wrong under vmap(jacfwd), of a product it is not.
        inverse = torch.linalg.inv(matrix(k))
    return k + (inverse @ (equations(k) - k).reshape(m * n)).reshape(m, n)


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


class ImplicitSlopes(torch.autograd.Function):
    """K where K = F(K), with the derivative of the implicit function theorem.

    ``image`` is F at ``leaf``, the converged K, in an autograd graph that reaches leaf and all else
    that F depends on: dK = (I - dF/dK)^-1 dF. First derivatives only.
    """

    @staticmethod
    def forward(ctx, image: Tensor, leaf: Tensor) -> Tensor:
        ctx.save_for_backward(image, leaf)
        return leaf.detach().clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        image, leaf = ctx.saved_tensors
        with torch.no_grad():
            solution = ImplicitSlopes._vjp(image, leaf, grad)
        return FirstDerivativeOnly.apply(
            solution.requires_grad_()
        ) if torch.is_grad_enabled() else solution, None

    @staticmethod
    def _vjp(image: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
        """(I - dF/dK)^-T grad."""
        if leaf.numel() <= DENSE_LIMIT:
            jacobian = dense_jacobian(image, leaf)
            matrix = torch.eye(len(jacobian), dtype=grad.dtype, device=grad.device) - jacobian
            return torch.linalg.solve(matrix.T, grad.reshape(-1)).reshape(grad.shape)

        def transposed(v: Tensor) -> Tensor:
            (vjp,) = torch.autograd.grad(image, leaf, v, retain_graph=True, allow_unused=True)
            return v if vjp is None else v - vjp

        solution, reached = gmres(transposed, grad, 1e2 * torch.finfo(grad.dtype).eps)
        if not reached:
            raise RuntimeError(
                "the gradient of an implicit step was not found: GMRES did not converge on the "
                f"{leaf.numel()} unknowns of its stages; a smaller step makes it easier"
            )
        return solution


class FirstDerivativeOnly(torch.autograd.Function):
    """x; differentiating it raises, as its derivative is not implemented and not zero."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        raise RuntimeError("implicit methods have first derivatives only, not second ones")

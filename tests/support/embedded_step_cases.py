"""References of one step in plain float64 PyTorch, written from the formulas without the ops."""

import math

import torch

from fastnode.nn import MLPField
from fastnode.tableaus import METHODS


def rms(x, per_sample):
    squares = x.square().reshape(x.shape[0], -1) if per_sample else x.square().reshape(1, -1)
    means = squares.mean(dim=1).sqrt()
    return means if per_sample else means[0]


def reference_step(func, t, y, h, method, rtol, atol, per_sample, held=True):
    """(y1, e, E, S): the stages one after the other, E and S by their definitions."""
    tableau = METHODS[method]
    if per_sample:
        t, h = (torch.as_tensor(x, dtype=torch.float64).expand(y.shape[0]) for x in (t, h))
    column = h.reshape(-1, *(1,) * (y.dim() - 1)) if per_sample else h
    inputs, derivatives = [], []
    for c, row in zip(tableau.c, tableau.a, strict=True):
        g = y + column * sum((float(a) * k for a, k in zip(row, derivatives, strict=True)), 0 * y)
        k = func(t + float(c) * h, g)
        derivatives.append(k.detach() if held and not derivatives else k)
        inputs.append(g)
    y1 = y + column * sum(float(b) * k for b, k in zip(tableau.b, derivatives, strict=True))
    e = column * sum(float(w) * k for w, k in zip(tableau.error, derivatives, strict=True))
    scaled = e / (atol + rtol * torch.maximum(y.abs(), y1.abs()))
    stiffness = torch.full_like(rms(e, per_sample), math.nan)
    ends = [i for i, c in enumerate(tableau.c) if c == 1]
    if len(ends) > 1:
        j, i = ends[-2:]
        change = rms(inputs[i] - inputs[j], per_sample) + torch.finfo(torch.float64).eps
        stiffness = rms(derivatives[i] - derivatives[j], per_sample) / change / tableau.stability
    return y1, e, rms(scaled, per_sample), stiffness


def reference_first_step(func, t, y, end, order, rtol, atol):
    """Hairer, Norsett, Wanner I, section II.4, "starting step size"."""
    scale = atol + rtol * y.abs()
    f = func(t, y)
    d0, d1 = rms(y / scale, False), rms(f / scale, False)
    h0 = 0.01 * d0 / d1
    direction = 1 if end > t else -1
    f1 = func(t + direction * h0, y + direction * h0 * f)
    d2 = rms((f1 - f) / scale, False) / h0
    h1 = (0.01 / torch.maximum(d1, d2)) ** (1 / order)
    return direction * min(100 * h0.item(), h1.item(), abs(end - t))


def make_field():
    torch.manual_seed(1)
    made = MLPField(3, 5, activation="tanh").double()
    with torch.no_grad():
        for layer in made.layers:
            layer.weight.mul_(2)
    return made


def make_state():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def parameter_gradients(value, module):
    """The gradients of a scalar with respect to a module's parameters."""
    found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True)
    return torch.cat([x.reshape(-1) for x in found])

"""The reversible scheme in plain PyTorch, for backprop through it."""

import torch

from fastnode.adjoints.discrete import reversible


def plain_reversible(field, y0, edges, tableau, args=()):
    """The reversible scheme, its graph kept."""

    def increment(t, h, y):
        k = []
        for c, row in zip(tableau.c, tableau.a, strict=True):
            terms = [float(a) * derivative for a, derivative in zip(row, k, strict=False)]
            time = torch.as_tensor(t + float(c) * h, dtype=y.dtype)
            k.append(field(time, y + h * sum(terms) if terms else y, *args))
        return h * sum(float(b) * derivative for b, derivative in zip(tableau.b, k, strict=True))

    mix, ys, z = reversible.COUPLING, [y0], y0
    for t, t1 in zip(edges, edges[1:], strict=False):
        h = t1 - t
        ys.append(mix * ys[-1] + (1 - mix) * z + increment(t, h, z))
        z = z - increment(t1, -h, ys[-1])
    return ys

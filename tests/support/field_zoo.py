"""Vector fields as people write them: what compile_field takes, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from zoo_modules import (
    Attention,
    ExactTrace,
    GruOde,
    Hamiltonian,
    Hutchinson,
    Residual,
    best_experts,
    changed_in_place,
    conv_block,
    counted,
    field,
    hyper,
    in_order,
    linear,
    lotka_volterra,
    lstm,
    message_passing,
    mixture,
    mlp,
    pooled,
    time_features,
    time_u_net,
    with_time_channel,
)

from fastnode.nn import MLPField

#: For each name what makes the field, and the shape of a sample.
FIELDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: field(lambda s, t, y: s.net(y), net=mlp(6, 20, 6)), (6,)),
    "time columns": (lambda: MLPField(6, 12, 3, "tanh"), (6,)),
    "residual": (Residual, (16,)),
    "exact trace": (ExactTrace, (3,)),
    "hutchinson": (Hutchinson, (3,)),
    "hamiltonian": (Hamiltonian, (4,)),
    "gru-ode": (GruOde, (12,)),
    "attention": (Attention, (5, 8)),
    "hypernetwork": (lambda: field(hyper, net=mlp(1, 8, 28)), (2,)),
    "convolutions": (
        lambda: field(
            conv_block,
            a=nn.Conv2d(4, 8, 3, padding=1),
            norm=nn.GroupNorm(2, 8),
            b=nn.Conv2d(8, 4, 3, padding=1),
        ),
        (4, 5, 5),
    ),
    "time channel": (
        lambda: field(
            with_time_channel,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(5, 2, 3, padding=1),
        ),
        (2, 4, 4),
    ),
    "strided": (
        lambda: field(
            lambda s, t, y: s.b(F.elu(s.a(y))),
            a=nn.Conv2d(2, 4, 4, stride=2, padding=1),
            b=nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
        ),
        (2, 6, 6),
    ),
    "dilated groups": (
        lambda: field(
            lambda s, t, y: s.b(torch.tanh(s.a(y))),
            a=nn.Conv1d(4, 8, 3, padding=2, dilation=2, groups=2),
            b=nn.Conv1d(8, 4, 1),
        ),
        (4, 9),
    ),
    "circular": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)),
            a=nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
        ),
        (2, 6),
    ),
    "pooling": (
        lambda: field(
            lambda s, t, y: s.b(F.interpolate(F.avg_pool2d(s.a(y), 2), scale_factor=2)),
            a=nn.Conv2d(2, 4, 3, padding=1),
            b=nn.Conv2d(4, 2, 1),
        ),
        (2, 4, 4),
    ),
    "instance norm": (
        lambda: field(lambda s, t, y: torch.tanh(s.n(y)), n=nn.InstanceNorm1d(3, affine=True)),
        (3, 7),
    ),
    "batch norm in eval": (
        lambda: field(lambda s, t, y: s.n(s.a(y)), a=linear(), n=nn.BatchNorm1d(4)).eval(),
        (4,),
    ),
    "rms norm": (lambda: field(lambda s, t, y: s.a(s.n(y)), a=linear(), n=nn.RMSNorm(4)), (4,)),
    "message passing": (
        lambda: field(
            message_passing,
            {"source": torch.tensor([0, 1, 2, 3, 1]), "target": torch.tensor([1, 2, 3, 0, 3])},
            layer=linear(8),
        ),
        (8,),
    ),
    "gru cell": (
        lambda: field(lambda s, t, y: s.cell(torch.zeros_like(y), y) - y, cell=nn.GRUCell(6, 6)),
        (6,),
    ),
    "lstm cell": (lambda: field(lstm, cell=nn.LSTMCell(4, 4)), (8,)),
    "multi-head attention": (
        lambda: field(
            lambda s, t, y: s.m(y, y, y, need_weights=False)[0],
            m=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        (3, 8),
    ),
    "transformer": (
        lambda: field(
            lambda s, t, y: s.layer(y),
            layer=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        ),
        (3, 8),
    ),
    "time features": (
        lambda: field(
            time_features, {"w": torch.arange(1.0, 4.0)}, net=mlp(10, 12, 4, activation=nn.Mish)
        ),
        (4,),
    ),
    "film": (
        lambda: field(
            lambda s, t, y: s.b(
                F.gelu(s.a(y) * (1 + s.f(t.view(1, 1))), approximate="tanh") + s.f(t.view(1, 1))
            ),
            f=nn.Linear(1, 12),
            a=nn.Linear(4, 12),
            b=nn.Linear(12, 4),
        ),
        (4,),
    ),
    "second order": (
        lambda: field(
            lambda s, t, y: torch.cat([y.chunk(2, -1)[1], s.net(y)], -1),
            net=mlp(6, 12, 3, activation=nn.SELU),
        ),
        (6,),
    ),
    "siren": (
        lambda: field(lambda s, t, y: s.b(torch.sin(5 * s.a(y))), a=linear(), b=linear()),
        (4,),
    ),
    "rows of times": (
        lambda: field(lambda s, t, y: torch.tanh(s.a(y)) * torch.cos(t.reshape(-1, 1)), a=linear()),
        (4,),
    ),
    "lotka-volterra": (lambda: field(lotka_volterra, rates=nn.Linear(4, 1, bias=False)), (2,)),
    "spiral": (lambda: field(lambda s, t, y: s.a((0.5 * y) ** 3), a=linear(2)), (2,)),
    "mixture": (
        lambda: field(
            mixture, gate=nn.Linear(4, 3), experts=nn.ModuleList(linear() for _ in range(3))
        ),
        (4,),
    ),
    "mask": (
        lambda: field(
            lambda s, t, y: torch.where(s.m, s.a(y), torch.tanh(y)),
            {"m": torch.tensor([True, False, True, True])},
            a=linear(),
        ),
        (4,),
    ),
    "embedding": (
        lambda: field(
            lambda s, t, y: s.a(torch.cat([y, s.e(s.k).expand(len(y), 4)], 1)),
            {"k": torch.tensor([2])},
            e=nn.Embedding(5, 4),
            a=nn.Linear(8, 4),
        ),
        (4,),
    ),
    "cumulative sum": (
        lambda: field(lambda s, t, y: s.a(torch.cumsum(torch.tanh(y), -1)), a=linear()),
        (4,),
    ),
    "weight norm": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)), a=nn.utils.parametrizations.weight_norm(linear())
        ),
        (4,),
    ),
    "spectral norm in eval": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)), a=nn.utils.parametrizations.spectral_norm(linear())
        ).eval(),
        (4,),
    ),
    "glu": (
        lambda: field(
            lambda s, t, y: s.b(F.glu(s.a(y), -1)), a=nn.Linear(4, 16), b=nn.Linear(8, 4)
        ),
        (4,),
    ),
    "prelu": (lambda: field(lambda s, t, y: s.p(s.a(y)), a=linear(), p=nn.PReLU()), (4,)),
    "norms": (
        lambda: field(
            lambda s, t, y: (
                s.a(y) / (1 + y.norm(dim=-1, keepdim=True))
                + torch.exp(-y.square())
                + torch.log(y.square() + 1)
                + torch.erf(y)
            ),
            a=linear(),
        ),
        (4,),
    ),
    "cross product": (
        lambda: field(
            lambda s, t, y: torch.cat(
                [y[:, 3:], torch.linalg.cross(y[:, :3], s.w.weight.expand(len(y), 3))], 1
            ),
            w=nn.Linear(3, 1, bias=False),
        ),
        (6,),
    ),
    "diffusion on a ring": (
        lambda: field(
            lambda s, t, y: (
                (torch.roll(y, 1, -1) - 2 * y + torch.roll(y, -1, -1)).flip(-1) + s.a(y)
            ),
            a=linear(),
        ),
        (4,),
    ),
    "bilinear": (
        lambda: field(lambda s, t, y: torch.tanh(s.b(y, y)), b=nn.Bilinear(4, 4, 4)),
        (4,),
    ),
    "einsum": (
        lambda: field(
            lambda s, t, y: torch.einsum(
                "bi,ijk,bj->bk", torch.sin(y), s.b.weight, torch.cos(y * t)
            ),
            b=nn.Bilinear(4, 4, 4, bias=False),
        ),
        (4,),
    ),
    "powers": (
        lambda: field(
            lambda s, t, y: (
                torch.atan2(s.a(y), 1 + y * y) + torch.log1p(y * y) - y * y.abs().pow(1.5)
            ),
            a=linear(),
        ),
        (4,),
    ),
    "max pooling": (
        lambda: field(pooled, a=nn.Conv2d(2, 4, 3, padding=1), b=nn.Conv2d(4, 2, 1)),
        (2, 4, 4),
    ),
    "max pooling of rows": (
        lambda: field(
            lambda s, t, y: torch.tanh(F.max_pool1d(s.a(y), 3, 1, 1)),
            a=nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate"),
        ),
        (2, 7),
    ),
    "sorting": (lambda: field(in_order, a=linear()), (4,)),
    "mixture of the best": (
        lambda: field(
            lambda s, t, y: best_experts(s, t, y)[..., 0],
            gate=nn.Linear(4, 3),
            experts=nn.ModuleList(linear() for _ in range(3)),
        ),
        (4,),
    ),
    "u-net": (
        lambda: field(
            time_u_net,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 6, 3, stride=2, padding=1),
            c=nn.ConvTranspose2d(6, 4, 2, stride=2),
            d=nn.Conv2d(8, 2, 1),
        ),
        (2, 4, 4),
    ),
    "padding": (
        lambda: field(
            lambda s, t, y: s.a(F.pad(torch.tanh(y), (1, 1), value=0.3)), a=nn.Linear(6, 4)
        ),
        (4,),
    ),
    "products of elements": (
        lambda: field(lambda s, t, y: s.a(y) * torch.tanh(y).prod(-1, keepdim=True), a=linear()),
        (4,),
    ),
    "diagonals": (
        lambda: field(
            lambda s, t, y: s.a(y) * torch.diagonal(y[:, :, None] * s.a(y)[:, None], 0, 1, 2),
            a=linear(),
        ),
        (4,),
    ),
    "logarithm of sigmoid": (lambda: field(lambda s, t, y: F.logsigmoid(s.a(y)), a=linear()), (4,)),
    "grouped pixels": (
        lambda: field(
            lambda s, t, y: F.pixel_unshuffle(torch.sin(F.pixel_shuffle(s.a(y), 2)), 2),
            a=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        ),
        (4, 3, 3),
    ),
}

#: What must be refused, and words of the reason.
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "batch norm in training": (
        lambda: field(lambda s, t, y: s.n(y), n=nn.BatchNorm1d(4)),
        (4,),
        "cannot be traced|depend on each other",
    ),
    "dropout": (
        lambda: field(lambda s, t, y: F.dropout(s.a(y), 0.5), a=linear()),
        (4,),
        "random numbers",
    ),
    "noise": (
        lambda: field(lambda s, t, y: s.a(y) + torch.randn_like(y), a=linear()),
        (4,),
        "random numbers",
    ),
    "branch on time": (
        lambda: field(lambda s, t, y: s.a(y) if t < 0.5 else -s.a(y), a=linear()),
        (4,),
        "value of a tensor",
    ),
    "number of the state": (
        lambda: field(lambda s, t, y: s.a(y) * float(y.abs().max()), a=linear()),
        (4,),
        "value of a tensor",
    ),
    "mean over the batch": (
        lambda: field(lambda s, t, y: s.a(y) - y.mean(0), a=linear()),
        (4,),
        "depend on each other",
    ),
    "state changed in place": (
        lambda: field(changed_in_place, layer=linear()),
        (4,),
        "in place",
    ),
    "counter": (lambda: field(counted, layer=linear()), (4,), "changes its"),
    "fourier transform": (
        lambda: field(lambda s, t, y: torch.fft.irfft(torch.fft.rfft(s.a(y)), n=4), a=linear()),
        (4,),
        "aten._fft|complex",
    ),
    "other shape": (
        lambda: field(lambda s, t, y: s.a(y)[:, :2], a=linear()),
        (4,),
        "it returns",
    ),
    "table looked up by the time": (
        lambda: field(
            lambda s, t, y: s.a(y) * s.table[(t * 4).long().view(1)],
            {"table": torch.rand(8)},
            a=linear(),
        ),
        (4,),
        "an index depends",
    ),
    "linear system": (
        lambda: field(
            lambda s, t, y: torch.linalg.solve(
                torch.eye(4, dtype=y.dtype) + y[:, :, None] * y[:, None], s.a(y)
            ),
            a=linear(),
        ),
        (4,),
        "no code for the operation aten._linalg_solve",
    ),
}

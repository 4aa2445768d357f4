"""What an installed wheel must do: python -I tests/smoke.py"""

import importlib.util
import math
import sysconfig
from pathlib import Path

import torch
from torch import nn

import fastnode
from fastnode import extension
from fastnode.nn import MLPField, SimulationFreeNODE

assert Path(sysconfig.get_path("platlib")) in Path(fastnode.__file__).parents, fastnode.__file__
assert fastnode.__version__[0].isdigit(), fastnode.__version__
assert extension.AVAILABLE, extension.REASON
assert importlib.util.find_spec("fastnode.triton_kernels")

# The native engine, with the gradient of exp(rate t) by the rate.
rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
start, times = torch.ones(3, dtype=torch.float64), torch.tensor([0.0, 2.0])
y = fastnode.odeint(lambda t, y: rate * y, start, times, rtol=1e-9, atol=1e-9)
assert torch.allclose(y[-1], torch.full_like(start, math.exp(-2.0)), atol=1e-7), y
(derivative,) = torch.autograd.grad(y[-1, 0], rate)
assert math.isclose(derivative.item(), 2 * math.exp(-2.0), rel_tol=1e-6), derivative

# The fused engine against the native one: smooth and in float64, so that rounding decides on no
# step.
field, batch = MLPField(2, 16, activation="tanh").double(), torch.randn(8, 2, dtype=torch.float64)
fused, native = (
    fastnode.solve(field, batch, times, engine=engine, rtol=1e-6, atol=1e-6).ys[-1]
    for engine in ("fused", "native")
)
assert torch.allclose(fused, native, rtol=0, atol=1e-9), (fused, native)

model = SimulationFreeNODE(
    encoder=nn.Linear(4, 8),
    label_encoder=nn.Linear(3, 8),
    decoder=nn.Linear(8, 3),
    field=MLPField(8, 16),
    num_classes=3,
)
model.loss(torch.randn(16, 4), torch.randint(3, (16,))).total.backward()
assert all(each.grad is not None for each in model.field.parameters())
print(f"fastnode {fastnode.__version__}: {extension.REASON}")

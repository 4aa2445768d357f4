"""The op of whole solves as torch's dispatcher sees it."""

import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import perceptron
from fastnode.nn import MLPField
from fastnode.ops.mlp_solve import mlp_solve

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
CONTROL = (0.9, 10.0, 0.2, 1.0, 0.0, float("inf"), 1.0, 0.0, 0.0)
#: Places of the op's arguments.
Y0, TIMES, GRID, PARAMETERS, LAYOUT, ACTIVATION, METHOD, NUMBERS, SETTINGS = range(9)


def request(method="dopri5", controller=CONTROL, max_num_steps=1000, slots=None, **options):
    made = extension.native().MlpRequest(
        method=method,
        rtol=1e-4,
        atol=1e-5,
        controller=list(controller),
        max_num_steps=max_num_steps,
        record=True,
        adjoint="backprop" if slots is None else "revolve",
        slots=slots,
        **{"instructions": fused_request.INSTRUCTIONS, **options},
    )
    return [method, made.numbers(), made.settings()]


def arguments(adaptive=True, requires_grad=True, bias=True, slots=None):
    torch.manual_seed(0)
    field = MLPField(3, [7, 5], None, "tanh", "once", bias).double()
    layers, activation = perceptron(field)
    parameters, layout = [], []
    for weight, offset, column in layers:
        given = [weight] if offset is None else [weight, offset]
        parameters += [x.detach().requires_grad_(requires_grad) for x in given]
        layout += [column, len(given) - 1]
    y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=requires_grad)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    grid = None if adaptive else torch.linspace(0, 1, 6, dtype=torch.float64)
    packed = request(slots=slots) if adaptive else request("rk4", (), slots=slots)
    return [y0, t, grid, parameters, layout, activation, *packed]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("slots", [None, 2])
def test_opcheck(adaptive, requires_grad, slots):
    torch.library.opcheck(mlp_solve, arguments(adaptive, requires_grad, slots=slots))


def test_results_have_the_sizes_that_the_solve_found():
    given = arguments()
    ys, steps, counts, kept = mlp_solve(*given)
    assert ys.shape == (3, 4, 3)
    taken = steps.shape[1] - 1
    assert steps[0, 0] == 0 and steps[0, -1] == 1 and (steps[1, 1:] > 0).all()
    assert kept.shape == (taken, 2, 4, 3) and not kept.requires_grad
    torch.testing.assert_close(kept[0, 0], given[Y0])
    evaluations, rejected = counts.tolist()
    assert evaluations == 2 + 6 * (taken + rejected)
    with torch.no_grad():
        assert mlp_solve(*given)[3].shape == (0, 2, 4, 3)


@pytest.mark.parametrize("adaptive", [True, False])
def test_gradients_with_few_states_are_those_with_all_of_them(adaptive):
    found = []
    for slots in (None, 0, 2):
        given = arguments(adaptive, slots=slots)
        ys, steps, _, kept = mlp_solve(*given)
        assert (kept.shape[0] == 0) == (slots is not None)
        loss = ys.square().sum() + (steps[1].sum() if adaptive else 0)
        found.append(torch.autograd.grad(loss, [given[Y0], *given[PARAMETERS]]))
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (Y0, torch.randn(4, 2, dtype=torch.float64), "y0 and parameters"),
        (Y0, torch.randn(4, 3), "y0 and parameters"),
        (TIMES, torch.tensor([0.0, 1.0, 0.5]), "strictly"),
        (LAYOUT, [3, 1], "parameters must have"),
        (ACTIVATION, 99, "activation"),
        (METHOD, "gl4", "explicit Runge-Kutta"),
        (METHOD, "rk4", "no error estimate"),
        (NUMBERS, (1e-4, 1e-4, 1.0, 2.0), "nine numbers"),
        (NUMBERS, (1e-4, 1e-4, 1.0), "grid"),
        (SETTINGS, (1, 2), "settings"),
        (SETTINGS, (1000, 0, 0, 0, 0, 3, 0, 0), "unknown adjoint"),
        (SETTINGS, (1000, 0, 0, 0, 0, 0, 0, 7), "instruction set"),
    ],
)
def test_mlp_solve_names_bad_arguments(place, value, message):
    given = arguments(requires_grad=False)
    given[place] = value
    with pytest.raises(ValueError, match=message):
        mlp_solve(*given)


def test_mlp_solve_raises_the_errors_of_the_library():
    given = [*arguments(requires_grad=False)[:METHOD], *request(max_num_steps=1)]
    with pytest.raises(fastnode.MaxStepsExceeded):
        mlp_solve(*given)


class Model(torch.nn.Module):
    def __init__(self, field, **options):
        super().__init__()
        self.inside, self.outside = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
        self.field, self.options = field, options

    def forward(self, x, t):
        y = fastnode.odeint(self.field, torch.relu(self.inside(x)), t, **self.options)
        return self.outside(y[-1]).sum()


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
@pytest.mark.parametrize("options", [{"rtol": 1e-5, "atol": 1e-5}, {"method": "rk4"}], ids=str)
def test_compiles_without_a_break_forward_and_backward(kind, options):
    torch.manual_seed(0)
    torch.compiler.reset()
    field = MLPField(3, 8, 3, "silu", "every") if kind == "MLPField" else fastnode.fuse(Plain())
    model = Model(field, **options)
    x, t = torch.randn(4, 3), torch.tensor([0.0, 0.5, 1.0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for each in (model, compiled):
        model.zero_grad()
        y = x.clone().requires_grad_()
        value = each(y, t)
        value.backward()
        found.append([value.detach(), y.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "options",
    [{"options": {"max_num_steps": 99}}, {"method": "rk4", "options": {"step_size": 0.25}}],
    ids=str,
)
def test_options_cost_at_most_one_break(options):
    torch.compiler.reset()
    model = Model(MLPField(3, 8, 2, "tanh", "none"), **options)
    x, t = torch.randn(4, 3), torch.tensor([0.0, 1.0])
    assert torch._dynamo.explain(model)(x, t).graph_break_count <= 1
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x, t), model(x, t))


def test_a_mode_sees_the_op_without_gradients_too():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    field, y0, t = MLPField(2, 4), torch.randn(3, 2), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        plain = fastnode.odeint(field, y0, t)
        with Seen() as seen:
            found = fastnode.odeint(field, y0, t)
    assert "fastnode.mlp_solve.default" in seen.names
    torch.testing.assert_close(found, plain, rtol=0, atol=0)

"""The fields of bench_fields.py in JAX, by the weights of the modules there."""

from __future__ import annotations

from typing import Any

from torch import nn


def weights(module: nn.Module) -> dict[str, Any]:
    import jax.numpy as jnp

    return {name: jnp.asarray(x.numpy()) for name, x in module.state_dict().items()}


def _linear(w: dict[str, Any], name: str, x: Any) -> Any:
    x = x @ w[f"{name}.weight"].T
    return x + w[f"{name}.bias"] if f"{name}.bias" in w else x


def _normalised(x: Any, axes: tuple[int, ...]) -> Any:
    import jax.numpy as jnp

    mean = x.mean(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)


def mlp(t: Any, y: Any, w: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    return _linear(w, "b", jnp.tanh(_linear(w, "a", y)))


def residual(t: Any, y: Any, w: dict[str, Any]) -> Any:
    import jax

    for i in range(3):
        x = _normalised(y, (-1,)) * w[f"norms.{i}.weight"] + w[f"norms.{i}.bias"]
        y = y + _linear(w, f"layers.{i}", jax.nn.silu(x))
    return _linear(w, "out", y)


def flow(t: Any, y: Any, w: dict[str, Any]) -> Any:
    import jax
    import jax.numpy as jnp

    def net(x: Any) -> Any:
        for i in range(3):
            x = jnp.tanh(x) if i else x
            gate = jax.nn.sigmoid(_linear(w, f"layers.{i}.gate", t[None]))
            x = _linear(w, f"layers.{i}.layer", x) * gate
            x = x + _linear(w, f"layers.{i}.shift", t[None])
        return x

    def one(x: Any) -> Any:
        value, pull = jax.vjp(net, x)
        trace = sum(pull(jnp.eye(2)[i])[0][i] for i in range(2))
        return jnp.concatenate([value, -trace[None]])

    t = jnp.asarray(t, y.dtype)
    return jax.vmap(one)(y[:, :2])


def convolutions(t: Any, y: Any, w: dict[str, Any]) -> Any:
    import jax

    for i in (1, 2):
        b, c, *image = y.shape
        x = _normalised(y.reshape(b, 4, c // 4, *image), (2, 3, 4)).reshape(y.shape)
        x = x * w[f"n{i}.weight"][:, None, None] + w[f"n{i}.bias"][:, None, None]
        y = jax.lax.conv_general_dilated(jax.nn.relu(x), w[f"c{i}.weight"], (1, 1), "SAME")
        y = y + w[f"c{i}.bias"][:, None, None]
    return y


def gru(t: Any, h: Any, w: dict[str, Any]) -> Any:
    import jax
    import jax.numpy as jnp

    r, z = jax.nn.sigmoid(_linear(w, "r", h)), jax.nn.sigmoid(_linear(w, "z", h))
    return (1 - z) * (jnp.tanh(_linear(w, "u", r * h)) - h)


def attention(t: Any, h: Any, w: dict[str, Any]) -> Any:
    import jax
    import jax.numpy as jnp

    scores = _linear(w, "q", h) @ _linear(w, "k", h).swapaxes(-1, -2) / 4
    mixed = jax.nn.softmax(scores, -1) @ _linear(w, "v", h)
    return jnp.tanh(_linear(w, "o", mixed) + _linear(w, "m", w["adjacency"] @ h))


FIELDS = {
    "mlp": mlp,
    "residual": residual,
    "flow": flow,
    "convolutions": convolutions,
    "gru": gru,
    "attention": attention,
}

"""The 25 problems of the DETEST set, for any array module, with their ends where they are known.

T. E. Hull, W. H. Enright, B. M. Fellen, A. E. Sedgwick, Comparing numerical methods for ordinary
differential equations, SIAM J. Numer. Anal. 9 (1972): one equation (A), small systems (B), moderate
systems (C), orbits of eccentricity 0.1 to 0.9 (D), equations of second order (E), all on [0, 20].
A field takes the module (torch, numpy or jax.numpy), t and y [n]: every library gets the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

END = 20.0

Field = Callable[[Any, Any, Any], Any]


class Problem(NamedTuple):
    field: Field
    y0: Sequence[float]
    #: Solution at END where it is known in closed form.
    end: Sequence[float] | None = None


def chain(xp: Any, outflow: Sequence[float], y: Any) -> Any:
    """Each of the first nine substances decays into the next."""
    flow = xp.asarray(outflow, dtype=y.dtype) * y[:-1]
    zero = xp.zeros_like(y[:1])
    return xp.concatenate([zero, flow]) - xp.concatenate([flow, zero])


def diffusion(xp: Any, t: Any, y: Any) -> Any:
    """Second differences with zeros beyond both ends."""
    zero = xp.zeros_like(y[:1])
    return xp.concatenate([y[1:], zero]) - 2 * y + xp.concatenate([zero, y[:-1]])


def linear_end(matrix: np.ndarray, y0: Sequence[float]) -> list[float]:
    return (scipy.linalg.expm(END * matrix) @ np.array(y0)).tolist()


def linear(field: Field, y0: Sequence[float]) -> Problem:
    columns = [field(np, 0.0, column) for column in np.eye(len(y0))]
    return Problem(field, y0, linear_end(np.stack(columns, axis=1), y0))


def torus(xp: Any, t: Any, y: Any) -> Any:
    radius = xp.sqrt(y[0] ** 2 + y[1] ** 2)
    return xp.stack(
        [-y[1] - y[0] * y[2] / radius, y[0] - y[1] * y[2] / radius, y[0] / radius],
    )


#: The sun with the inner planets, Jupiter, Saturn, Uranus, Neptune and Pluto, in solar masses,
#: astronomical units and hundreds of days.
GRAVITY, SUN = 2.95912208286, 1.00000597682
MASSES = (
    0.000954786104043,
    0.000285583733151,
    0.0000437273164546,
    0.0000517759138449,
    0.00000277777777778,
)
PLACES = (
    (3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380),
    (3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142),
    (1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679),
)
VELOCITIES = (
    (-0.557160570446, -0.415570776342, -0.325325669158, -0.0240476254170, -0.176860753121),
    (0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025),
    (0.230578543901, 0.169143213293, 0.0877265322780, -0.117219543175, -0.0148647893090),
)


def planets(xp: Any, t: Any, y: Any) -> Any:
    place, velocity = y[:15].reshape(3, 5), y[15:]
    masses = xp.asarray(MASSES, dtype=y.dtype)
    cubed = (place**2).sum(0) ** 1.5
    apart = place[:, None, :] - place[:, :, None]
    # The diagonal, where the numerator is zero, must not divide by zero.
    between = ((apart**2).sum(0) + xp.eye(5)) ** 1.5
    pull = (masses * (apart / between - (place / cubed)[:, None, :] * (1 - xp.eye(5)))).sum(-1)
    force = GRAVITY * (pull - (SUN + masses) * place / cubed)
    return xp.concatenate([velocity, force.reshape(15)])


def orbit(xp: Any, t: Any, y: Any) -> Any:
    cubed = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return xp.stack([y[2], y[3], -y[0] / cubed, -y[1] / cubed])


def kepler(e: float) -> Problem:
    """An orbit from its pericentre; its end from Kepler's equation u - e sin u = t."""
    u = END
    for _ in range(50):
        u -= (u - e * math.sin(u) - END) / (1 - e * math.cos(u))
    minor, rate = math.sqrt(1 - e * e), 1 / (1 - e * math.cos(u))
    end = (
        math.cos(u) - e,
        minor * math.sin(u),
        -math.sin(u) * rate,
        minor * math.cos(u) * rate,
    )
    return Problem(orbit, (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))), end)


def second_order(acceleration: Callable[[Any, Any, Any, Any], Any]) -> Field:
    """y'' = acceleration(xp, t, y, y') as a system."""
    return lambda xp, t, y: xp.stack([y[1], acceleration(xp, t, y[0], y[1])])


def bessel(t: float) -> tuple[float, float]:
    """J_1/2 and its derivative."""
    scale = math.sqrt(2 / (math.pi * t))
    return scale * math.sin(t), scale * (math.cos(t) - math.sin(t) / (2 * t))


def first(count: int) -> list[float]:
    return [1.0] + [0.0] * (count - 1)


FALL, LEFT = math.sqrt(0.032 * 0.4) * END, 1 - END / 25
PROBLEMS = {
    "A1": Problem(lambda xp, t, y: -y, [1.0], [math.exp(-END)]),
    "A2": Problem(lambda xp, t, y: -(y**3) / 2, [1.0], [1 / math.sqrt(1 + END)]),
    "A3": Problem(lambda xp, t, y: y * xp.cos(t), [1.0], [math.exp(math.sin(END))]),
    "A4": Problem(lambda xp, t, y: y / 4 * (1 - y / 20), [1.0], [20 / (1 + 19 * math.exp(-5))]),
    "A5": Problem(lambda xp, t, y: (y - t) / (y + t), [4.0]),
    "B1": Problem(
        lambda xp, t, y: xp.stack([2 * (y[0] - y[0] * y[1]), y[0] * y[1] - y[1]]), [1.0, 3.0]
    ),
    "B2": linear(
        lambda xp, t, y: xp.stack([y[1] - y[0], y[0] - 2 * y[1] + y[2], y[1] - y[2]]),
        [2.0, 0.0, 1.0],
    ),
    "B3": Problem(lambda xp, t, y: xp.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), first(3)),
    "B4": Problem(torus, [3.0, 0.0, 0.0]),
    "B5": Problem(
        lambda xp, t, y: xp.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]), [0.0, 1.0, 1.0]
    ),
    "C1": linear(lambda xp, t, y: chain(xp, [1.0] * 9, y), first(10)),
    "C2": linear(lambda xp, t, y: chain(xp, [float(i) for i in range(1, 10)], y), first(10)),
    "C3": linear(diffusion, first(10)),
    "C4": linear(diffusion, first(51)),
    "C5": Problem(planets, [x for part in (PLACES, VELOCITIES) for row in part for x in row]),
    **{f"D{i}": kepler(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)},
    "E1": Problem(
        second_order(lambda xp, t, y, v: -v / (t + 1) - (1 - 0.25 / (t + 1) ** 2) * y),
        bessel(1.0),
        bessel(1.0 + END),
    ),
    "E2": Problem(second_order(lambda xp, t, y, v: (1 - y**2) * v - y), [2.0, 0.0]),
    "E3": Problem(
        second_order(lambda xp, t, y, v: y**3 / 6 - y + 2 * xp.sin(2.78535 * t)), [0.0, 0.0]
    ),
    "E4": Problem(
        second_order(lambda xp, t, y, v: 0.032 - 0.4 * v**2),
        [30.0, 0.0],
        [30 + math.log(math.cosh(FALL)) / 0.4, math.sqrt(0.032 / 0.4) * math.tanh(FALL)],
    ),
    "E5": Problem(
        second_order(lambda xp, t, y, v: xp.sqrt(1 + v**2) / (25 - t)),
        [0.0, 0.0],
        [-12.5 * math.log(LEFT) - 6.25 * (1 - LEFT**2), (1 / LEFT - LEFT) / 2],
    ),
}

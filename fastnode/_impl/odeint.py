"""What programs import from ``torchdiffeq._impl.odeint``: the names of the methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastnode.api.odeint import odeint, odeint_event
from fastnode.api.odeint_dense import odeint_dense
from fastnode.engines.methods import NAMES

__all__ = ["SOLVERS", "odeint", "odeint_dense", "odeint_event"]


class _Method:
    """In the place of a solver's class."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            f"fastnode has no class for the method {self.name!r}: call fastnode.odeint with "
            f"method={self.name!r}; fastnode.register_method adds methods of your own"
        )

    def __repr__(self) -> str:
        return f"<method {self.name}>"


class _Methods(Mapping[str, _Method]):
    """The methods of ``odeint`` by name, those of ``register_method`` included."""

    def __getitem__(self, name: str) -> _Method:
        if name not in NAMES:
            raise KeyError(name)
        return _Method(name)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


SOLVERS = _Methods()

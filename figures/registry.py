"""All figures by name, each read from its module when it is first asked for."""

from functools import cache
from importlib import import_module
from typing import Any

from attrib.errors import AttribError
from figures.figure import Figure

NAMES = (
    *(f"dualedit_figure_{number}" for number in range(1, 6)),
    *(f"visedit_figure_{number}" for number in range(1, 10)),
)


@cache
def find(name: str) -> Figure:
    """The figure of a name.

    Raises:
        AttribError: there is none; the message says which there are.
    """
    if name not in names():
        raise AttribError(f"no figure {name!r}; there are {', '.join(names())}")
    figure = import_module(f"figures.{name}").FIGURE
    assert figure.name == name, f"{name} names itself {figure.name}"
    return figure


def names() -> tuple[str, ...]:
    """The names of all figures, in the order of the papers."""
    return NAMES


def __getattr__(name: str) -> Any:
    if name == "FIGURES":
        return {name: find(name) for name in names()}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Committed figures: their numbers are read, and they are drawn, once for all tests."""

from functools import cache
from pathlib import Path

from figures import DEFAULT, Measured, find
from figures.figure import Figure

render = Figure.render
ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"


@cache
def committed(name):
    """The committed numbers of a figure."""
    return Measured.load(FIGURES / "data" / name)


@cache
def drawn(name):
    """The drawing of a figure's committed numbers."""
    return render(find(name), committed(name), DEFAULT)

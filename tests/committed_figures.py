"""Committed figures: their numbers are read, and they are drawn, once for all tests."""

from functools import cache
from pathlib import Path

from figures import DEFAULT, Measured, find
from figures.figure import Figure

render = Figure.render
ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"


# Folder of the pictures by model; the numbers are in `data/` there.
FOLDERS = {"tiny-llava": FIGURES, "smol-llava": FIGURES / "smol-llava"}
FIRST = "tiny-llava"


@cache
def committed(name, model=FIRST):
    """The committed numbers of a figure on a model."""
    return Measured.load(FOLDERS[model] / "data" / name)


@cache
def drawn(name, model=FIRST):
    """The drawing of a figure's committed numbers."""
    return render(find(name), committed(name, model), DEFAULT)

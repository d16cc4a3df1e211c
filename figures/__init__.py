"""The figures of the VisEdit and DualEdit papers, re-made: claim, numbers, picture, verdict.

import figures
figure = figures.find("dualedit_figure_1")
measured = figures.results(figure)  # the committed numbers; figure.measure(setting) for others
figures.show(figure, measured)
figure.verdict(measured).text
"""

from figures.figure import Figure, Measured, Setting, Verdict
from figures.registry import find, names
from figures.style import DEFAULT, PAPER, STYLES, Style
from figures.writing import Picture, results, show, write, write_index

__all__ = [
    "DEFAULT",
    "PAPER",
    "STYLES",
    "Figure",
    "Measured",
    "Picture",
    "Setting",
    "Style",
    "Verdict",
    "find",
    "names",
    "results",
    "show",
    "write",
    "write_index",
]

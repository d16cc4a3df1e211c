"""The figures of the VisEdit and DualEdit papers, reproduced: claim, numbers, picture, verdict.

import figures
figure = figures.find("dualedit_figure_1")
measured = figures.results(figure)  # the committed numbers; figure.measure(setting) for others
figures.show(figure, measured)
figure.verdict(measured).text
"""

from figures.export import Picture, other_models, results, show, write, write_index
from figures.figure import Figure, Measured, Setting, Verdict, find, names
from figures.style import DEFAULT, PAPER, STYLES, Style

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
    "other_models",
    "results",
    "show",
    "write",
    "write_index",
]

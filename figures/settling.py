"""Drawings whose parts stay where they are, so that the same numbers give the same bytes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DIGITS = 4  # of places, as shares of the drawing: less than a pixel


def settled(drawing: "Drawing") -> "Drawing":
    """The drawing, laid out once and for all, with rounded places.

    The solver of matplotlib's layout may end in other last bits when other figures were drawn
    before; these bits would be in the file, in the names of clip paths.
    """
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    for ax in drawing.axes:
        left, bottom, width, height = ax.get_position(original=True).bounds
        ax.set_position(
            (
                round(left, DIGITS),
                round(bottom, DIGITS),
                round(width, DIGITS),
                round(height, DIGITS),
            )
        )
    return drawing

"""Panels with an image, a map over an image, or text; headings and colour bars."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from figures.frames import floats
from figures.scene_objects import SIDES
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

OPACITY = 0.78
LINE = 26  # letters of a line of text
WHOLE = (0, 1, 1, 0)  # extent of an image, in shares of its sides
SHADES = 12
HEAT_LABEL = "square root of heat / the map's maximum"
GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Scale:
    """The range of a colour map."""

    low: float
    high: float

    @classmethod
    def of(cls, values: "pd.Series | np.ndarray") -> "Scale":
        """Return the range from the lowest to the highest value."""
        found = np.asarray(values, float)
        return cls(float(np.nanmin(found)), float(np.nanmax(found)))


def strip_axes(ax: "Axes", title: str = "") -> None:
    """Remove ticks and frame; set a small title."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=8.5, fontweight="normal", loc="center")


def show_image(ax: "Axes", pixels: np.ndarray, title: str = "") -> None:
    """Show an image."""
    strip_axes(ax, title)
    ax.imshow(pixels, extent=WHOLE, interpolation="none")
    ax.set_aspect(pixels.shape[0] / pixels.shape[1])


def show_map(
    ax: "Axes", pixels: np.ndarray, cells: pd.DataFrame, scale: Scale, style: Style,
    title: str = "",
) -> Any:  # fmt: skip
    """Show an image in grey under coloured cells; return the mappable for a colour bar.

    `cells` has the columns row, col, value, left, top, right, bottom. Cells are smoothed in the
    style "paper" only.
    """
    strip_axes(ax, title)
    ax.imshow(_grey(pixels), extent=WHOLE, zorder=1, interpolation="none", cmap="gray", vmin=0,
              vmax=1)  # fmt: skip
    values = cells.pivot(index="row", columns="col", values="value").to_numpy(float)
    left, top, right, bottom = (floats(cells, side)[0] for side in SIDES)
    shown = ax.imshow(
        values, cmap=style.heat, vmin=scale.low, vmax=scale.high, alpha=OPACITY, zorder=2,
        interpolation="bilinear" if style.name == "paper" else "none",
        extent=(left, right, bottom, top),
    )  # fmt: skip
    ax.set_xlim(min(0, left), max(1, right))
    ax.set_ylim(max(1, bottom), min(0, top))
    ax.set_aspect(pixels.shape[0] / pixels.shape[1])
    return shown


def show_heatmap(
    ax: "Axes", pixels: np.ndarray, cells: pd.DataFrame, style: Style, title: str = "",
    below: str = "",
) -> Any:  # fmt: skip
    """Show a heatmap from 0 to its maximum, which is written below it; return the mappable.

    Heat is the square of the sine of half an angle, so colours follow its square root.
    """
    top = float(floats(cells, "value").max())
    shares = cells.assign(value=np.sqrt(cells["value"] / max(top, 1e-12)))
    shown = show_map(ax, pixels, shares, Scale(0.0, 1.0), style, title)
    ax.set_xlabel("\n".join(part for part in (below, f"max {top:.2g}") if part), fontsize=7.5)
    return shown


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return few shades of grey at half the resolution: detail under a map only costs bytes."""
    height, width = (size // 2 * 2 for size in pixels.shape[:2])
    grey = (pixels[:height, :width] @ np.array(GREY)) / 255
    half = grey.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return np.round(half * SHADES) / SHADES


def caption_panel(ax: "Axes", text: str, *, size: float | int = 8.0, width: int = LINE) -> None:
    """Write wrapped text in place of an image; line breaks in `text` stay."""
    strip_axes(ax)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""]]
    # A dollar sign would start a formula.
    ax.text(0, 0.5, "\n".join(lines).replace("$", r"\$"), fontsize=size, va="center", ha="left")


def add_colorbar(drawing: "Drawing", shown: Any, axes: "Sequence[Axes] | Axes", label: str) -> None:
    """Add an opaque colour bar."""
    found = drawing.colorbar(shown, ax=axes, shrink=0.7, aspect=28, pad=0.01)
    found.set_label(label, fontsize=8.5)
    found.ax.tick_params(labelsize=8)
    if found.solids is not None:
        found.solids.set_alpha(1)


def add_heading(drawing: "Drawing", text: str) -> None:
    """Set the title of a drawing, aligned left."""
    drawing.suptitle(text, fontsize=10.5, x=0.01, ha="left")

"""Small pictures with a map over them, and words beside."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from figures.rows import numbers
from figures.scene_objects import SIDES
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

OPACITY = 0.78
WORDS = 26  # letters of a line beside a picture
SUFFIX = " The answer is:"
WHOLE = (0, 1, 1, 0)  # an image's own place, in shares of its sides
SHADES = 12
HEAT_BAR = "square root of heat / the map's maximum"
GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


@dataclass(frozen=True)
class Scale:
    """The values that a colour map runs over."""

    low: float
    high: float

    @classmethod
    def of(cls, values: "pd.Series | np.ndarray") -> "Scale":
        """From the lowest to the highest of some values."""
        found = np.asarray(values, float)
        return cls(float(np.nanmin(found)), float(np.nanmax(found)))


def bare(ax: "Axes", title: str = "") -> None:
    """No ticks, no frame; a small title."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=8.5, fontweight="normal", loc="center")


def show_image(ax: "Axes", pixels: np.ndarray, title: str = "") -> None:
    """A picture alone."""
    bare(ax, title)
    ax.imshow(pixels, extent=WHOLE, interpolation="none")
    ax.set_aspect(pixels.shape[0] / pixels.shape[1])


def show_map(
    ax: "Axes", pixels: np.ndarray, cells: pd.DataFrame, scale: Scale, style: Style,
    title: str = "",
) -> Any:  # fmt: skip
    """A picture in grey with cells over it, where they lie; what a colour bar is made for.

    `cells` has the columns row, col, value, left, top, right, bottom. Only in the papers' look are
    the cells smoothed.
    """
    bare(ax, title)
    ax.imshow(_grey(pixels), extent=WHOLE, zorder=1, interpolation="none", cmap="gray", vmin=0,
              vmax=1)  # fmt: skip
    values = cells.pivot(index="row", columns="col", values="value").to_numpy(float)
    left, top, right, bottom = (numbers(cells, side)[0] for side in SIDES)
    shown = ax.imshow(
        values, cmap=style.heat, vmin=scale.low, vmax=scale.high, alpha=OPACITY, zorder=2,
        interpolation="bilinear" if style.name == "paper" else "none",
        extent=(left, right, bottom, top),
    )  # fmt: skip
    ax.set_xlim(min(0, left), max(1, right))
    ax.set_ylim(max(1, bottom), min(0, top))
    ax.set_aspect(pixels.shape[0] / pixels.shape[1])
    return shown


def show_heat(
    ax: "Axes", pixels: np.ndarray, cells: pd.DataFrame, style: Style, title: str = "",
    below: str = "",
) -> Any:  # fmt: skip
    """A map of heat, from 0 to its own maximum, which is written below it.

    Heat is the square of the sine of half an angle, so colours follow its square root.
    """
    top = float(numbers(cells, "value").max())
    shares = cells.assign(value=np.sqrt(cells["value"] / max(top, 1e-12)))
    shown = show_map(ax, pixels, shares, Scale(0.0, 1.0), style, title)
    ax.set_xlabel("\n".join(part for part in (below, f"max {top:.2g}") if part), fontsize=7.5)
    return shown


def _grey(pixels: np.ndarray) -> np.ndarray:
    """A picture in few shades of grey and half as fine: under a map, its noise only costs bytes."""
    height, width = (size // 2 * 2 for size in pixels.shape[:2])
    grey = (pixels[:height, :width] @ np.array(GREY)) / 255
    half = grey.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return np.round(half * SHADES) / SHADES


def beside(ax: "Axes", text: str, *, size: float | int = 8.0, width: int = WORDS) -> None:
    """Words in place of a picture, wrapped; line breaks in `text` stay."""
    bare(ax)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""]]
    # A dollar sign would start a formula.
    ax.text(0, 0.5, "\n".join(lines).replace("$", r"\$"), fontsize=size, va="center", ha="left")


def question(prompt: str) -> str:
    """A prompt without what every prompt ends in."""
    return prompt.removesuffix(SUFFIX)


def bar(drawing: "Drawing", shown: Any, axes: "Sequence[Axes] | Axes", label: str) -> None:
    """A colour bar."""
    found = drawing.colorbar(shown, ax=axes, shrink=0.7, aspect=28, pad=0.01)
    found.set_label(label, fontsize=8.5)
    found.ax.tick_params(labelsize=8)
    if found.solids is not None:
        found.solids.set_alpha(1)

"""Boxes and arrows on axes that run from 0 to 100 both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Number = int | float
Point = tuple[Number, Number]
TEXT_SIZE = 8.5


@dataclass(frozen=True)
class Canvas:
    """Where boxes are drawn, and in which colours.

    Attributes:
        ax: The axes.
        colors: By what they stand for.
    """

    ax: "Axes"
    colors: Mapping[str, str]

    @classmethod
    def on(cls, ax: "Axes", colors: Mapping[str, str], title: str = "") -> "Canvas":
        """The axes without ticks and frame, from 0 to 100."""
        ax.set_axis_off()
        ax.set_xlim(0, 100)
        ax.set_ylim(-3, 100)
        if title:
            ax.set_title(title)
        return cls(ax, colors)

    def box(
        self, x: Number, y: Number, width: Number, height: Number, text: str, kind: str = "grid",
        *, fill: Number = 0.18, size: Number = TEXT_SIZE,
    ) -> None:  # fmt: skip
        """A box around a middle, with text in it; `fill` is how strong its colour is."""
        left, right = x - width / 2, x + width / 2
        low, high = y - height / 2, y + height / 2
        corners = [left, right, right, left], [low, low, high, high]
        color = self.colors[kind]
        self.ax.fill(*corners, color="white", zorder=2, linewidth=0)
        self.ax.fill(*corners, color=color, alpha=fill, zorder=2, linewidth=0)
        edge = self.colors["muted"] if kind == "grid" else color
        self.ax.plot([*corners[0], left], [*corners[1], low], color=edge, linewidth=1, zorder=3)
        self.note(x, y, text, size=size)

    def note(self, x: Number, y: Number, text: str, **look: Any) -> None:
        """Words alone, around a middle unless told otherwise."""
        given = {"ha": "center", "va": "center", "color": self.colors["ink"], "zorder": 4}
        size = look.pop("size", TEXT_SIZE)
        self.ax.text(x, y, text, **{**given, **look}, fontsize=size, linespacing=1.25)

    def arrow(
        self, points: Sequence[Point], kind: str = "muted", *, line: str = "-", head: bool = True
    ) -> None:
        """A line through some points, with a head at the last one."""
        xs, ys = zip(*points, strict=True)
        color = self.colors[kind]
        self.ax.plot(xs, ys, color=color, linestyle=line, linewidth=1.3, zorder=1.5)
        if head:
            tip = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "lw": 1.3}
            (x0, y0), (x1, y1) = points[-2:]
            near = (x1 - (x1 - x0) * 1e-3, y1 - (y1 - y0) * 1e-3)
            self.ax.annotate("", (x1, y1), xytext=near, arrowprops=tip, zorder=3)

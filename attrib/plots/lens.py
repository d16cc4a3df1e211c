"""The logit lens as a table: layers by positions, each cell with its likeliest token."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from attrib.plots.drawing import INK, figure_of, new_axes, style

CELL = (0.95, 0.26)  # inches
LONGEST = 11  # characters of a token in a cell
COLORS = "Blues"
DARK = 0.6  # probability from which on white letters are read more easily


def lens_table(
    texts: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "layer pos"],
    layers: Sequence[int],
    words: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw the likeliest token of each layer's state at each position; the last layer on top.

    Args:
        texts: Of the tokens, by layer and position.
        probabilities: Theirs, which colour the cells.
        layers: The layers' numbers.
        words: The tokens of the prompt at these positions.
        ax: Axes to draw on.
    """
    width, height = CELL[0] * len(words) + 2.0, CELL[1] * len(layers) + 1.3
    with style():
        ax = new_axes(width, height) if ax is None else ax
        norm = Normalize(0.0, 1.0)
        ax.grid(visible=False)
        ax.imshow(probabilities, cmap=COLORS, norm=norm, aspect="auto", origin="lower")
        for (row, column), p in np.ndenumerate(probabilities):
            color = "white" if p >= DARK else INK
            ax.text(
                column, row, shown(texts[int(row)][int(column)]),
                ha="center", va="center", fontsize=7, color=color, parse_math=False,
            )  # fmt: skip
        labels = [shown(word) for word in words]
        ax.set_xticks(range(len(words)), labels, rotation=40, ha="right", fontsize=7,
                      parse_math=False)  # fmt: skip
        ax.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
        ax.set_xlabel("token of the prompt, after which the cell's token is the likeliest")
        ax.set_ylabel("layer")
        ax.set_title("Logit lens")
        bar = figure_of(ax).colorbar(ScalarMappable(norm, COLORS), ax=ax)
        bar.set_label("probability")
    ax.set_label(_description(texts, probabilities, layers, words))
    return ax


def shown(token: str) -> str:
    """A token as it is printed: short, without characters that cannot be seen."""
    text = "".join(c if c.isprintable() else "\u00b7" for c in token).strip()
    return (text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026") or "\u00b7"


def _description(
    texts: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "layer pos"],
    layers: Sequence[int],
    words: Sequence[str],
) -> str:
    """The text alternative: the last position, layer by layer."""
    column = [
        f"layer {layer}: {shown(row[-1])} ({p:.2f})"
        for layer, row, p in zip(layers, texts, probabilities[:, -1], strict=True)
    ]
    return f"Likeliest tokens of {len(words)} positions; at the last one, {'; '.join(column)}."

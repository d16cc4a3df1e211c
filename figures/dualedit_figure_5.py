"""DualEdit, Figure 5: reliability by the layers of the text and the visual adapter."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attrib.errors import SetupError
from attrib.stats import wilson
from figures.figure import Figure, Measured, Setting, Verdict
from figures.frames import select_rows
from figures.measure import provenance, same_depth
from figures.style import Style
from figures.trained_editor import find_upwards

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "dualedit_figure_5"
LAYERS, OF = (16, 19), 32  # the paper's pair of layers, and how many layers its model has
TEST_EDITS = 200  # edits per cell, if there is no grid.json
NO_GATE = "none"
MOST_LAYERS = 16  # from here on only the layers of trained pairs are shown
HATCH = "///"  # of cells without a score
PAIRS = "1x1+0x0+4x1+3x3+2x2+0x2+2x0+5x5,6+8x8"  # of the committed grid


def measure(setting: Setting) -> Measured:
    """Read the largest grid of the model that `attrib grid` has written.

    Table "cells": text, visual (layers), value (mean over seeds, 0 to 1), low, high, seeds.

    Raises:
        SetupError: There is no grid of the model.
    """
    import attrib

    path = _largest_grid(setting)
    gate, grid = choose_gate(pd.read_csv(path))
    made = _conditions(path, setting)
    cells = cell_table(grid, edits := made["test_edits"])
    num_layers = attrib.load(setting.model).num_layers
    more = {
        "num_layers": num_layers,
        "test_edits": edits,
        "gate": gate,
        "pair_of_paper": [same_depth(layer, OF, num_layers) for layer in LAYERS],
        "selected": _selected(setting),
        "grid": made["command"],
    }
    found = provenance(NAME, setting, len(cells), **more)
    return Measured({"cells": cells}, {}, found | {"data": f"{setting.data} validation"})


def choose_gate(grid: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the gate to show ("none" if there is only that) and the rows scored with it."""
    gates = list(dict.fromkeys(grid["gate"]))
    gate = next((name for name in gates if name != NO_GATE), NO_GATE)
    return gate, select_rows(grid, gate=gate)


def cell_table(grid: pd.DataFrame, edits: int) -> pd.DataFrame:
    """Return the reliability of each pair of layers with its 95 % interval.

    The interval is Wilson's for `edits` answers, each right or wrong; it is a little too wide if
    answers of several tokens are half right. Averaging seeds does not narrow it, because all seeds
    are scored on the same edits.
    """
    pairs = grid.loc[grid["metric"] == "rel"].dropna(subset=["text", "visual"])
    cells = pairs.groupby(["text", "visual"], as_index=False).agg(
        value=("value", "mean"), seeds=("seed", "nunique")
    )
    ends = [wilson(share * edits, edits) for share in cells["value"].astype(float)]
    cells[["low", "high"]] = np.array(ends)
    return cells.astype({"text": int, "visual": int})


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw the grid with missing cells hatched, and mark the best pair and two others."""
    import seaborn  # slow to import, and needed here only

    from attrib.plots.drawing import new_figure

    drawing = new_figure(6.8, 5.6)
    ax = drawing.add_subplot()
    values, (text, visual) = _matrix(measured), _axes_of(measured)
    bar: dict[str, Any] = {"label": "reliability, % of answer tokens", "shrink": 0.8}
    seaborn.heatmap(100 * values, ax=ax, mask=np.isnan(values), annot=True, fmt=".1f",
                    cmap=style.sequence, annot_kws={"fontsize": 7.5, "va": "top"},
                    cbar_kws=bar, xticklabels=list(map(str, visual)),
                    yticklabels=list(map(str, text)))  # fmt: skip
    ax.invert_yaxis()  # the centre of the cell (row, col) is at (col + 0.5, row + 0.5)
    ax.tick_params(rotation=0)
    ax.grid(visible=False)
    ax.patch.set(hatch=HATCH, edgecolor=style.colors["grid"])
    _marks(ax, measured, style)
    about = measured.about
    ax.set(xlabel="layer of the visual adapter", ylabel="layer of the text adapter")
    cells, edits = len(measured.tables["cells"]), about["test_edits"]
    done = f"{cells} of {about['num_layers'] ** 2} pairs trained, {edits} edits each"
    gate = "without a gate" if about["gate"] == NO_GATE else f"behind the {about['gate']} gate"
    ax.set_title(f"Reliability of DualEdit {gate}\n{about['model']}: {done}")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2}
    ax.legend(fontsize=8.5, markerscale=1.1, **below)
    return drawing


def verdict(measured: Measured) -> Verdict:
    """Check that the pair at the paper's relative depth is the best one."""
    cells = measured.tables["cells"]
    best = cells.loc[cells["value"].idxmax()]
    worst = cells.loc[cells["value"].idxmin()]
    level = int((cells["high"] >= best["low"]).sum()) - 1
    text, visual = measured.about["pair_of_paper"]
    same = cells[(cells["text"] == text) & (cells["visual"] == visual)]
    ranking = (
        f"the best of {len(cells)} pairs is {_pair(best)}, the worst {_pair(worst)}; the intervals "
        f"of {level} other pairs overlap with that of the best one"
    )
    if same.empty:
        return Verdict(None, f"text {text}, visual {visual} was not trained; {ranking}")
    here = same.iloc[0]
    if here["value"] == best["value"]:
        return Verdict(True if level == 0 else None, ranking)
    holds = False if here["high"] < best["low"] else None
    return Verdict(holds, f"the pair at the paper's relative depth, {_pair(here)}; {ranking}")


def alt(measured: Measured) -> str:
    """Describe the grid cell by cell."""
    cells = measured.tables["cells"].sort_values("value", ascending=False)
    values = "; ".join(
        f"text {text}, visual {visual}: {100 * value:.1f} %"
        for text, visual, value in zip(cells["text"], cells["visual"], cells["value"], strict=True)
    )
    total = measured.about["num_layers"] ** 2
    return (
        f"Grid of the reliability of DualEdit in {measured.about['model']} over pairs of layers, "
        f"{len(cells)} of {total} of them trained, from the best to the worst: {values}."
    )


FIGURE = Figure(
    NAME,
    "DualEdit, Figure 5",
    "Reliability over the layers of the text and of the visual adapter",
    "With adapters at text layers 16 to 19 and visual layers 16 to 19 of a model of 32 layers, "
    "reliability is between 97.8 and 98.3 %. The best pair, text 16 and visual 19, half way and "
    "three fifths of the way up, is the one to use.",
    measure,
    draw,
    verdict,
    alt,
    published="97.8 to 98.3 % at layers 16 to 19 of 32; best at text 16, visual 19",
)


def _largest_grid(setting: Setting) -> Path:
    """Return the path of the grid with the most rows."""
    short = setting.model.removeprefix("tiny-")
    known = (f"runs/grid-{short}/grid.csv", f"figures/tables/grid-{setting.model}/grid.csv")
    found = [path for name in known if (path := find_upwards(Path(name))).is_file()]
    if not found:
        raise SetupError(
            f"no grid of {setting.model}: neither {' nor '.join(known)} is there. Make one with "
            f"`{_grid_command(setting)}`"
        )
    return max(found, key=lambda path: len(pd.read_csv(path)))


def _grid_command(setting: Setting) -> str:
    short = setting.model.removeprefix("tiny-")
    words = ["attrib", "grid", "--model", setting.model, "--data", setting.data, "--text", "none",
             "--visual", "none", "--pairs", PAIRS, "--steps", "100", "--limit", "1000",
             "--test-limit", str(TEST_EDITS), "--out", f"runs/grid-{short}"]  # fmt: skip
    return shlex.join(words)


def _conditions(path: Path, setting: Setting) -> dict[str, Any]:
    """Return how the grid was made, from the `grid.json` beside it; older grids have none."""
    about = path.with_name("grid.json")
    if about.is_file():
        return json.loads(about.read_text(encoding="utf-8"))
    return {"command": _grid_command(setting), "test_edits": TEST_EDITS}


def _selected(setting: Setting) -> list[int]:
    """Return the first text and visual layer that `attrib select` chose, if it was run."""
    path = find_upwards(setting.editors) / "select" / "layers.json"
    if not path.is_file():
        return []
    layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
    return [layers["text"][0], layers["visual"][0]]


def _axes_of(measured: Measured) -> tuple[list[int], list[int]]:
    """Return the text and the visual layers shown: all, or those of a sparse grid of many."""
    num, cells = measured.about["num_layers"], measured.tables["cells"]
    if num <= MOST_LAYERS:
        return list(range(num)), list(range(num))
    pairs = [pair for pair in (measured.about["pair_of_paper"], measured.about["selected"]) if pair]
    text, visual = (
        sorted({*cells[name].astype(int), *(pair[side] for pair in pairs)})
        for side, name in enumerate(("text", "visual"))
    )
    return text, visual


def _matrix(measured: Measured) -> np.ndarray:
    text, visual = _axes_of(measured)
    cells = measured.tables["cells"].set_index(["text", "visual"])["value"]
    return np.array([[cells.get((t, v), np.nan) for v in visual] for t in text], float)


def _marks(ax: "Axes", measured: Measured, style: Style) -> None:
    cells = measured.tables["cells"]
    best = cells.loc[cells["value"].idxmax()]
    places = {"best pair": (int(best["text"]), int(best["visual"])),
              "pair at the paper's relative depth": measured.about["pair_of_paper"],
              "pair that attrib select chose": measured.about["selected"]}  # fmt: skip
    text, visual = _axes_of(measured)
    for (name, pair), marker in zip(places.items(), ("*", "D", "o"), strict=True):
        if len(pair):
            x, y = visual.index(pair[1]) + 0.5, text.index(pair[0]) + 0.7
            ax.plot(x, y, marker, color="white", markeredgecolor="black", markersize=8,
                    linestyle="none", label=name)  # fmt: skip
    look: dict[str, Any] = {"hatch": HATCH, "edgecolor": style.colors["muted"], "linewidth": 0}
    ax.fill([], [], fill=False, label="not trained", **look)


def _pair(row: Any) -> str:
    return (
        f"text {int(row['text'])} and visual {int(row['visual'])} with {100 * row['value']:.1f} % "
        f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    )

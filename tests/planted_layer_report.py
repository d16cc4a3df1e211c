"""A planted report on layers: evidence whose layers we chose, and heatmaps of plain images."""

from pathlib import Path

import numpy as np
import pandas as pd
import planted
import planted_layers
from PIL import Image
from planted_layers import LAYERS, result

from attrib.data import EditRequest, EditSample, Quarantined
from attrib.report import RunRead, layer_study
from attrib.results import Result

ROWS, COLS = 3, 4
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)></svg>{{7*7}}{% raw %}'
VERSIONS = {"python": "3.11", "attrib": "0.1"}
NUMBER = planted_layers.EXAMPLES


def run_of(table, rows=None, quarantined=(), **tables):
    """A run with a table; a finished one unless `rows` says how many there are."""
    done = table.examples
    folder = Path("runs") / table.analysis
    return RunRead(folder, table, tables, done, rows or done, tuple(quarantined))


def heatmap(examples=2, layers=LAYERS, rows=ROWS):
    """The run of a heatmap: in layer l cell l is the hottest."""
    cells = rows * COLS or COLS
    values = np.zeros((examples, layers, cells))
    values[:, range(layers), [layer % cells for layer in range(layers)]] = 1.0
    made = result("heatmap", values, layer=range(layers), token=range(cells))
    on_grid = np.where(rows > 0, made.frame["token"] // COLS, -1)
    table = Result("heatmap", made.frame.assign(row=on_grid, col=made.frame["token"] % COLS),
                   made.provenance)  # fmt: skip
    grids = pd.DataFrame([
        {"example": f"e{i}", "rows": rows, "cols": COLS if rows else 0, "left": -4.0, "top": 0.0,
         "right": 36.0, "bottom": 24.0, "value": float(cells)} for i in range(examples)
    ])  # fmt: skip
    return run_of(table, grids=Result("grids", grids, made.provenance))


def samples(prompt, missing=()):
    """The samples of the planted evidence."""
    image = Image.new("RGB", (32, 24), "teal")
    return {
        name: EditSample(name, EditRequest(None if name in missing else image, prompt, "red"))
        for name in (f"e{i}" for i in range(NUMBER))
    }


def runs(name="planted", quarantined=()):
    """Runs of all analyses, the attention one with rows set aside."""
    model = {"name": name}
    made = [
        planted_layers.contributions(model=model),
        planted_layers.sweep("text", model=model),
        planted_layers.sweep("visual", model=model),
        planted_layers.patching(model=model),
    ]
    attention = planted.attention(np.linspace(0.1, 0.6, LAYERS), examples=NUMBER)
    made.append(Result("attention", attention.frame, made[0].provenance))
    versioned = [Result(t.analysis, t.frame, {**t.provenance, "versions": VERSIONS}) for t in made]
    return [run_of(t, quarantined=quarantined if t.analysis == "attention" else ())
            for t in versioned]  # fmt: skip


def bad_rows(number, file="a.json"):
    """Rows that were set aside."""
    return [Quarantined(file, i, "image", "no such file") for i in range(number)]


def grid(best=(6, 5), singles=False):
    """Scores that fall by 1 with every layer away from the best cell, two seeds."""
    layers = range(LAYERS - 1)
    cells = [(t, v) for t in layers for v in layers]
    cells += [(t, None) for t in layers] if singles else []
    rows = [
        (t, v, seed, 90.0 - abs(t - best[0]) - (0 if v is None else abs(v - best[1])))
        for t, v in cells for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["text", "visual", "seed", "score"])


def study(prompt="What color is the star?", name="planted", number=1, **more):
    """A study with heatmaps; `number` rows were set aside."""
    file = more.pop("file", "a.json")
    given = {"commands": {"Reproduce": [f"attrib select --model {name}"]}, **more}
    made = given.pop("runs", None) or [*runs(name, bad_rows(number, file)), heatmap()]
    return layer_study(made, samples=lambda _run: samples(prompt), **given)

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VisEdit, Figure 3: where the influence mapper lets an edit act
#
# **The original's claim.** The mapper picks out the part of a picture that the edit's prompt is about, also in another
# picture of the same thing; pictures that have nothing to do with the edit get low scores
# everywhere.

# %%
# A real model and real data: MODEL = "llava-hf/llava-1.5-7b-hf", DATA = the folder with the E-VQA
# files, SPLIT = "vqa-train", EDITORS = the folder with their trained
# `visedit-seed-0` and `dualedit-seed-0`. All numbers below are then measured.
MODEL = "tiny-llava"
DATA = "scenes-vqa"
SPLIT = "validation"
LIMIT = 100
EDITORS = "runs/table/tiny-llava/scenes-vqa"

# %% [markdown]
# ## One sample, live
#
# An edit stores the state of the last token of its prompt. The mapper scores every visual token
# against it; the sigmoid of the score is how strongly the token is changed, from 0 to 1. The heatmap
# beside it is the training target of the mapper: the mean over the layers after the adapter.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

from pathlib import Path

import pandas as pd

import attrib
import figures
from figures.trained_editor import live_editor, training_hint

setting = figures.Setting(MODEL, DATA, SPLIT, LIMIT, editors=Path(EDITORS))
vlm = attrib.load(MODEL)
editor = live_editor(setting, "visedit", vlm)
if editor is None:
    print(f"SKIPPED: the live part needs a trained editor. {training_hint(setting, 'visedit')}")
else:
    from figures.influence_maps import influence_maps

    data = attrib.data.load(DATA, SPLIT, limit=2)
    (maps, *_) = influence_maps(vlm, editor, list(data))
    print(data[0].request)
    for which, found in maps.items():
        grid = found.grid
        print(f"{which}: mean {found.values.mean():.2f}")
        display(pd.DataFrame(found.cells.reshape(grid.rows, grid.cols)).round(2))

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 edits; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_3")
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
measured.tables["scores"].groupby("map", sort=False).mean(numeric_only=True).round(3)

# %% [markdown]
# ## Verdict

# %%
print(figure.verdict(measured).text)

# %% [markdown]
# ## On a pretrained language model
#
# The same figure of `smol-llava`, whose decoder is SmolLM2 with 30 layers, from committed numbers.

# %%
other = figures.Measured.load(f"../figures/smol-llava/data/{figure.name}")
figures.show(figure, other)

# %%
print(figure.verdict(other).text)

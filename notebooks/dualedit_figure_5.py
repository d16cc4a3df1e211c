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
# # DualEdit, Figure 5: reliability over pairs of layers
#
# **The original's claim.** With adapters at text layers 16 to 19 and visual layers 16 to 19 of a model of 32 layers,
# reliability is between 97.8 and 98.3 %. The best pair, text 16 and visual 19, half way and
# three fifths of the way up, is the one to use.

# %%
# A real model and real data: MODEL = "llava-hf/llava-1.5-7b-hf", DATA = the folder with the E-VQA
# files, SPLIT = "vqa-train", and the grid that `attrib grid` trained of it. All numbers below are then measured.
MODEL = "tiny-llava"
DATA = "scenes-vqa"
SPLIT = "validation"
LIMIT = 100

# %% [markdown]
# ## One cell, live
#
# Each cell is a separate editor: adapters at one text and one visual layer, trained on the same
# edits for the same number of steps, and scored without a gate and behind one that all cells share.
# Here a single cell is trained on a few edits for a few steps, so its numbers mean nothing yet;
# `attrib grid` trains all cells.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import tempfile

import attrib
import figures
from editors import DualEdit
from editors.evaluation.layer_grid import cells, grid

setting = figures.Setting(MODEL, DATA, SPLIT, LIMIT)
vlm = attrib.load(MODEL)
samples = attrib.data.load(DATA, "train" if MODEL == "tiny-llava" else SPLIT, limit=4)
test = attrib.data.load(DATA, SPLIT, limit=4)
with tempfile.TemporaryDirectory() as out:
    wanted = cells([], [], [(1, 1)], [0])
    config = DualEdit.config_class.from_preset(vlm, steps=2)
    found = grid(DualEdit, vlm, samples, test, wanted, out, config, print)
display(found)

# %% [markdown]
# ## The figure
#
# The committed numbers: 200 edits a cell, behind the shared gate, mean over three seeds.

# %%
figure = figures.find("dualedit_figure_5")
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
pairs = measured.tables["cells"].pivot(index="text", columns="visual", values="value")
display((100 * pairs).round(1).astype(object).fillna("not trained"))
measured.tables["cells"].sort_values("value", ascending=False).round(3)

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

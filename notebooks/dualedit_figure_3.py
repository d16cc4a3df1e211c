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
# # DualEdit, Figure 3: the framework, drawn from a trained editor
#
# **The original's claim.** Two learnable adapters, one for text and one for visual states, are put into chosen layers
# of the frozen model. A gate compares the last token's state with the edit's and switches
# both adapters on or off together.

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
# ## One editor, live
#
# The drawing is made from the modules of a loaded editor. Without a trained one (in a fresh clone),
# one is trained here for a few steps: it has the same parts, but does not edit well yet.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import tempfile
from pathlib import Path

import pandas as pd

import attrib
import figures
from editors import DualEdit
from figures.editor_structure import effects, structure
from figures.trained_editor import has_editor, load_editor, training_hint

setting = figures.Setting(MODEL, DATA, SPLIT, LIMIT, editors=Path(EDITORS))
vlm = attrib.load(MODEL)
if has_editor(setting, "dualedit"):
    editor = load_editor(setting, "dualedit", vlm)
    print(f"trained for {editor.trained['training']['steps']} steps")
else:
    few = attrib.data.load(DATA, "train" if MODEL == "tiny-llava" else SPLIT, limit=4)
    with tempfile.TemporaryDirectory() as out:
        editor = DualEdit.train(
            vlm, few, layers={"text": [1], "visual": [1]}, out=out, steps=2, gate="none"
        )
    print(f"TRAINED FOR 2 STEPS ONLY. {training_hint(setting, 'dualedit')}")
parts = structure(editor)
display(parts["sites"].T)
display(parts["gate"])
display(parts["losses"])

# %% [markdown]
# Its effect on the inputs of four edits: whether the gate opens, which share of its positions each
# adapter writes, and whether any other position or the output changes.

# %%
pd.set_option("display.width", 120)
measured_effects = effects(vlm, editor, list(attrib.data.load(DATA, SPLIT, limit=4)))
measured_effects.groupby("input").mean(numeric_only=True).round(2)

# %% [markdown]
# ## The figure
#
# The committed numbers of a trained editor and 100 edits; measured if the parameters differ.

# %%
figure = figures.find("dualedit_figure_3")
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
pd.set_option("display.max_columns", None)
display(measured.tables["sites"].T)
display(measured.tables["losses"])
measured.tables["effects"].groupby("input").mean(numeric_only=True).round(3)

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

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
# # VisEdit, Figure 2: its architecture and loss, drawn from a live editor
#
# **The original's claim.** One adapter behind a middle layer moves visual states by cross-attention to the edit; an
# influence mapper, steered by the last token of the edit's prompt, sets how strongly each
# visual token is moved. It is trained on the edit's losses and three terms for the mapper.
# The paper's editor has no gate.

# %%
# A real model and real data: MODEL = "llava-hf/llava-1.5-7b-hf", DATA = the folder with the E-VQA
# files, SPLIT = "vqa-train", EDITORS = the folder with their trained
# `visedit-seed-0` and `dualedit-seed-0`. All numbers below are then measured anew.
MODEL = "tiny-llava"
DATA = "scenes-vqa"
SPLIT = "validation"
LIMIT = 100
EDITORS = "runs/table/tiny-llava/scenes-vqa"

# %% [markdown]
# ## One editor, live
#
# What is drawn is read from the modules of a loaded editor. Where no trained one is at hand (a
# fresh clone), one is trained for a few steps here: it is made of the same parts, but does not
# yet edit well.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import attrib
import figures
from editors import VisEdit
from figures.editor_structure import effects, structure
from figures.trained_editor import has_editor, load_editor, training_hint

setting = figures.Setting(MODEL, DATA, SPLIT, LIMIT, editors=Path(EDITORS))
vlm = attrib.load(MODEL)
if has_editor(setting, "visedit"):
    editor = load_editor(setting, "visedit", vlm)
    print(f"trained for {editor.trained['training']['steps']} steps")
else:
    few = attrib.data.load(DATA, "train" if MODEL == "tiny-llava" else SPLIT, limit=24)
    with tempfile.TemporaryDirectory() as out:
        editor = VisEdit.train(vlm, few, layers={"visual": [1]}, out=out, steps=5)
    print(f"TRAINED FOR 5 STEPS ONLY. {training_hint(setting, 'visedit')}")
parts = structure(editor)
display(parts["sites"].T)
display(parts["gate"])
display(parts["losses"])

# %% [markdown]
# And what it does: for the inputs of four edits whether the gate opens, which share of its
# positions each adapter writes, and whether any other position or the output changes.

# %%
pd.set_option("display.width", 120)
watched = effects(vlm, editor, list(attrib.data.load(DATA, SPLIT, limit=4)))
watched.groupby("input").mean(numeric_only=True).round(2)

# %% [markdown]
# ## The figure
#
# The committed numbers of a trained editor and 100 edits; measured anew where the parameters are others.

# %%
figure = figures.find("visedit_figure_2")
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

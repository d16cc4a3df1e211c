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
# # VisEdit, Figure 9: more heat before and after edits
#
# **The original's claim.** In more counterfactual edits the parts of the picture that contribute most stay the same,
# while the answers to the request and to its rephrase and other picture change; the edit has
# made these parts into ones that lead to the new answer.

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
# ## One edit, live
#
# The same heatmap, `attrib.heatmaps`, in the unedited model and inside `edit.applied`. As in the
# paper, the edit has no gate.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

from pathlib import Path

import numpy as np
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
    editor = editor.with_gate(None)
    request = attrib.data.load(DATA, SPLIT, limit=1)[0].request
    batch = vlm.encode([request.image], [request.prompt], padding_side="left")
    layers = range(editor.sites[0].layer + 1, vlm.num_layers - 1)
    before = attrib.heatmaps(vlm, batch, layers, noise=0.1).mean(1)[0]
    print(request.prompt, vlm.generate(batch, max_new_tokens=8)[0])
    with editor.edit(vlm, request).applied(vlm):
        after = attrib.heatmaps(vlm, batch, layers, noise=0.1).mean(1)[0]
        print("edited:", vlm.generate(batch, max_new_tokens=8)[0])
    ranks = [pd.Series(heat.numpy()).rank() for heat in (before, after)]
    print(f"rank correlation of the heat before and after: {np.corrcoef(*ranks)[0, 1]:.2f}")

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 edits; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_9")
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
changes = measured.tables["changes"].groupby("input", sort=False)
display(changes[["kept", "mass_before", "mass_after", "answered"]].mean().round(3))
measured.tables["captions"][["number", "input", "target", "before", "after"]]

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

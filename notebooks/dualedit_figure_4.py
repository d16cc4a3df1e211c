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
# # DualEdit, Figure 4: can a gate separate an edit from other inputs?
#
# **The original's claim.** The cosine similarity of last-token states separates rephrases and other pictures of
# an edit from unrelated inputs, so that a threshold can gate the edit; similarities of mean visual
# and mean text states overlap and cannot.

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
# ## A few samples, live
#
# The states of an edit's request are compared with those of the inputs it covers and of those it
# must leave alone. `target_last` is what the published code compares: it is the state after
# the gold answer, so it leaks what the gate should decide about.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

from pathlib import Path

import pandas as pd

import attrib
import figures

setting = figures.Setting(MODEL, DATA, SPLIT, LIMIT, editors=Path(EDITORS))
vlm = attrib.load(MODEL)
data = attrib.data.load(DATA, SPLIT, limit=6)


def batch(requests):
    return vlm.encode(
        *([getattr(r, part) for r in requests] for part in ("image", "prompt", "target"))
    )


edits = batch([sample.request for sample in data])
others = {
    "other words": batch([sample.text_generality[0] for sample in data]),
    "other picture": batch([sample.visual_generality[0] for sample in data]),
    "unrelated image": batch([sample.visual_locality[0] for sample in data]),
}
rows = {
    (token, name): attrib.gate_similarity(vlm, edits, other, layer=1, token=token).tolist()
    for token in ("visual_mean", "text_mean", "prompt_last", "target_last")
    for name, other in others.items()
}
pd.DataFrame(rows, index=[sample.id for sample in data]).T.round(4)

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 edits with all of their inputs; measured if the parameters differ.

# %%
figure = figures.find("dualedit_figure_4")
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
pd.set_option("display.max_columns", None)
measured.tables["separation"].round(3)

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

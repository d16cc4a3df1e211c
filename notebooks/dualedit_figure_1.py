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
# # DualEdit, Figure 1: attention of the last prompt token to words and to visual tokens
#
# **The original's claim.** In every layer a word gets far more attention than a visual token on
# average, and only a few visual tokens get much; the averages of both are highest in shallow
# layers, which differ between the two.

# %%
# A real model and real data: MODEL = "llava-hf/llava-1.5-7b-hf", DATA = the folder with the E-VQA
# files, SPLIT = "vqa-train". All numbers below are then measured.
MODEL = "tiny-llava"
DATA = "scenes-vqa"
SPLIT = "validation"
LIMIT = 100

# %% [markdown]
# ## A few samples, live
#
# How it is measured: one forward pass; `attrib.attention` gives the row of the last prompt token,
# mean over heads, and `attrib.profile` the share of each kind of token. The begin-of-sequence
# token is counted separately: it draws attention for any prompt; counted as text, it alone would put text
# above the image.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import pandas as pd

import attrib
import figures
from attrib.analyses.attention import STATISTICS

vlm = attrib.load(MODEL)
data = attrib.data.load(DATA, SPLIT, limit=4)
images, prompts = ([getattr(s.request, part) for s in data] for part in ("image", "prompt"))
batch = vlm.encode(images, prompts).named([sample.id for sample in data])
rows = attrib.attention(vlm, batch)  # batch, layer, position
shares = attrib.profile(rows, batch).mean(0)
pd.DataFrame(shares.numpy(), columns=list(STATISTICS)).rename_axis("layer").round(3)

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("dualedit_figure_1")
setting = figures.Setting(model=MODEL, data=DATA, split=SPLIT, limit=LIMIT)
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
measured.tables["profile"].groupby("layer").mean(numeric_only=True).round(4)

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

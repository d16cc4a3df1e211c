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
# # DualEdit, Figure 2: sensitivity of the output to noise in each layer, on visual tokens, words and both
#
# **The original's claim.** Noise in different layers hits the output differently depending on
# whether it lands on visual tokens or on words, so the important layers of the two differ; noise on
# both gives a pattern of its own, which is not the sum of the two.

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
# How it is measured: noise is added to the output of one layer at the positions of one modality,
# and all later layers run on; `attrib.sensitivity` returns the KL divergence of the next-token
# distribution from the clean one, in nats. Sigma is a multiple of the standard deviation of the
# states: the paper names no unit, and absolute noise would mostly show that hidden states grow with
# depth.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import pandas as pd

import attrib
import figures

vlm = attrib.load(MODEL)
data = attrib.data.load(DATA, SPLIT, limit=4)
images, prompts = ([getattr(s.request, part) for s in data] for part in ("image", "prompt"))
batch = vlm.encode(images, prompts).named([sample.id for sample in data])
found = {
    modality: attrib.sensitivity(vlm, batch, modality, sigmas=(1.0,)).mean((0, 2)).tolist()
    for modality in ("visual", "text", "both")
}
pd.DataFrame(found).rename_axis("layer").round(2)

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("dualedit_figure_2")
setting = figures.Setting(model=MODEL, data=DATA, split=SPLIT, limit=LIMIT)
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
measured.tables["noise"].groupby("layer").mean(numeric_only=True).T.round(3)

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

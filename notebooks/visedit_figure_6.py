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
# # VisEdit, Figure 6: what each layer contributes to a token that the model does not predict
#
# **The original's claim.** With the answer to an unrelated question as key token, contributions
# shrink by an order of magnitude, and do not rise from shallow to deep layers but for the last few:
# the contributions to the predicted token are no artefact.

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
# How it is measured: `attrib.contributions` with one token id per sample as `key`. The wrong
# token is the first one of the answer to the sample's unrelated question (its visual locality).

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import pandas as pd
import torch

import attrib
import figures

vlm = attrib.load(MODEL)
data = attrib.data.load(DATA, SPLIT, limit=4)
images, prompts = ([getattr(s.request, part) for s in data] for part in ("image", "prompt"))
batch = vlm.encode(images, prompts).named([sample.id for sample in data])
wrong = torch.tensor([vlm.answer_token(sample.visual_locality[0].target) for sample in data])
means = {
    f"{name}, {module}": attrib.contributions(vlm, batch, key=key).mean(0)[:, i].tolist()
    for name, key in (("right", "argmax"), ("wrong", wrong))
    for i, module in enumerate(("attention", "MLP"))
}
pd.DataFrame(means).rename_axis("layer").round(3)

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_6")
setting = figures.Setting(model=MODEL, data=DATA, split=SPLIT, limit=LIMIT)
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
means = measured.tables["contributions"].groupby(["model", "layer"], sort=False)
means.mean(numeric_only=True).round(3)

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

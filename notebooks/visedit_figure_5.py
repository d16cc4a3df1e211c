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
# # VisEdit, Figure 5: what each layer contributes to the answer, in the other two backbones
#
# **The original's claim.** In BLIP2-OPT and MiniGPT-4 too, attention and MLP of deep layers
# contribute more to the predicted token than those of shallow layers.

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
# How it is measured: as in Figure 1, with `attrib.contributions`. With the final norm frozen at
# its true statistics, the same outputs sum to the logit: the check below.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import pandas as pd

import attrib
import figures
from figures.visedit_figure_5 import OTHERS

for name in OTHERS if MODEL == "tiny-llava" else [MODEL]:
    vlm = attrib.load(name)
    data = attrib.data.load(DATA, SPLIT, limit=4)
    images, prompts = ([getattr(s.request, part) for s in data] for part in ("image", "prompt"))
    batch = vlm.encode(images, prompts).named([sample.id for sample in data])
    means = attrib.contributions(vlm, batch).mean(0)
    print(name)
    display(pd.DataFrame(means.numpy(), columns=["attention", "MLP"]).rename_axis("layer").round(3))
    total = attrib.direct_logits(vlm, batch).total
    logits = vlm.logits(batch)[batch["last"]].max(-1).values
    print(f"shares sum to the logit up to {(total - logits).abs().max():.1e}")

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_5")
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

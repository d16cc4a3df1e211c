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
# # VisEdit, Figure 1: what each layer contributes to the answer, and what its attention reads in the image
#
# **The original's claim.** Attention and MLP of deep layers contribute far more to the predicted
# token than those of shallow layers; and what attention writes in the layers that contribute much
# is decided mostly by the visual tokens of the objects that the prompt is about.

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
# How it is measured: `attrib.contributions` reads the output of each layer's attention and MLP at
# the last prompt token through the output embedding (Eqs. 3-5); `attrib.heatmaps` adds noise to
# one visual token at a time and compares what attention writes (Eqs. 6-8). The paper's noise is
# three standard deviations of the visual states; a tenth of one keeps the token recognisable.

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
means = attrib.contributions(vlm, batch).mean(0)  # layer, module
display(pd.DataFrame(means.numpy(), columns=["attention", "MLP"]).rename_axis("layer").round(3))
layer = int(means[:, 0].argmax())
heat = attrib.heatmaps(vlm, batch, layers=[layer], noise=3.0)[0, 0]
grid = batch.grids[0]
print(prompts[0])
if grid is not None:  # a Q-Former's queries have no place in the image
    print(f"layer {layer}, in thousandths:")
    print((1000 * heat.view(grid.rows, grid.cols)).round().int().numpy())

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_1")
setting = figures.Setting(model=MODEL, data=DATA, split=SPLIT, limit=LIMIT)
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
display(measured.tables["contributions"].groupby("layer").mean(numeric_only=True).round(3))
if "pointing" in measured.tables:  # if there is ground truth
    display(measured.tables["pointing"].groupby("layer").mean(numeric_only=True).round(2))

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

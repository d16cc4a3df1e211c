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
# # VisEdit, Figure 7: what attention reads in the image, from shallow to deep layers
#
# **The original's claim.** In shallow layers the visual tokens that attention depends on have no
# clear meaning; in middle layers some maps follow the prompt, with much noise; in deep layers they
# make sense to people and show what the prompt asks for.

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
# How it is measured: `attrib.heatmaps`, for all layers in one pass. For data with ground truth (the
# embedded scenes), the hottest visual token can be compared with the object asked about; chance is
# the object's share of the tokens.

# %%
import sys

sys.path.insert(0, "..")  # `figures` is part of the repository, not of the package

import attrib
import figures

vlm = attrib.load(MODEL)
data = attrib.data.load(DATA, SPLIT, limit=2)
images, prompts = ([getattr(s.request, part) for s in data] for part in ("image", "prompt"))
batch = vlm.encode(images, prompts).named([sample.id for sample in data])
for noise in (3.0, 0.1):
    maps = attrib.heatmaps(vlm, batch, noise=noise)  # batch, layer, visual token
    hottest = maps[0].argmax(-1).tolist()
    print(f"{prompts[0]} Noise of {noise} std, hottest token by layer: {hottest}")

# %% [markdown]
# ## The figure
#
# The committed numbers of 100 samples; measured if the parameters differ.

# %%
figure = figures.find("visedit_figure_7")
setting = figures.Setting(model=MODEL, data=DATA, split=SPLIT, limit=LIMIT)
measured = figures.results(figure, setting)
figures.show(figure, measured)

# %% [markdown]
# ## The numbers behind it

# %%
display(measured.tables["samples"][["example", "prompt", "answer"]])
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

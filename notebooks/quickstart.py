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
# # Quickstart
#
# Where does a vision-language model's answer come from, at which layers should it be edited, and does an edit hold? Everything here
# runs on a laptop in under a minute, with a small trained model that is part of the package. Replace `"tiny-llava"` by a Hugging Face
# id, such as `"llava-hf/llava-1.5-7b-hf"`, for a real one.

# %%
import attrib

vlm = attrib.load("tiny-llava")
vlm

# %% [markdown]
# ## A question about an image
#
# Samples are lazy: images open when they are touched. `encode` takes lists of images and prompts.

# %%
samples = attrib.data.load("scenes-vqa", split="test", limit=32)
samples[0]

# %%
from PIL import Image

image, prompt = Image.open("../docs/sample.png"), "What color is the star? The answer is:"
request = attrib.data.EditRequest(image, prompt, target="red")  # the target is for editing
batch = vlm.encode([image], [prompt])
print(vlm.generate(batch, max_new_tokens=4))
batch

# %% [markdown]
# ## Any analysis over any samples
#
# `attrib.run` returns a `Result`: a tidy table that draws itself (`plot`), describes itself (`summary`) and gives its rows
# (`to_frame`). With `out="runs/x"` it is saved, and the same call resumes an interrupted run.

# %%
result = attrib.run("contributions", vlm, samples)
result

# %%
result.to_frame().head()

# %%
noise = attrib.run("sensitivity", vlm, samples[:8], modality="visual")
print(noise.summary())
noise.plot()

# %% [markdown]
# ## What attention reads in the image

# %%
star = attrib.data.EditSample("star", request)
maps = attrib.run("heatmaps", vlm, [star], noise=0.1, layers="1,3,5")
maps.plot()

# %% [markdown]
# ## Read and write hidden states
#
# Everything above is built on two context managers. `read` gives the output of layers; `write` replaces it at the positions of one
# modality and leaves all other positions bit for bit the same.

# %%
with attrib.read(vlm, [0]) as hidden:
    vlm.logits(batch)
with attrib.write(vlm, 0, lambda h: 0 * h, at=batch.spans["visual"]):
    print(
        tuple(hidden[0].shape), "image ablated at layer 0:", vlm.generate(batch, max_new_tokens=4)
    )

# %% [markdown]
# ## Patching: which image does the answer follow?
#
# The visual states of another image replace those of this one, layer by layer. Where the answer stops following the other image, it
# has passed from the visual tokens to the last token. One object holds every version of the result.

# %%
from attrib.data.scenes import make_scene, render

scene = next(
    scene
    for scene in map(make_scene, range(1000))
    if [thing.color for thing in scene.objects if thing.shape == "star"] == ["red"]
)
other_image, _ = render(scene, 0)
other = vlm.encode([other_image], [prompt])
print("other image:", vlm.generate(other, max_new_tokens=4))
patched = attrib.patching(vlm, batch, other, span="visual")
print("follows the other image, by layer:", patched[0].int().tolist())
print("normalised logit difference:      ", patched.difference[0].numpy().round(2))

# %% [markdown]
# ## Which layers to edit
#
# `attrib select` on the command line collects all evidence and writes `layers.json`; here the rule *sensitivity* decides alone.

# %%
evidence = [noise, attrib.run("sensitivity", vlm, samples[:8], modality="text")]
report = attrib.select_layers(evidence, "sensitivity")
report.layers

# %% [markdown]
# ## An edit
#
# FT-L takes gradient steps on one matrix, so it needs no training beforehand; `editors.DualEdit.train` trains adapters at the
# selected layers. An edit holds inside the `with` block; afterwards the model is bit for bit what it was.

# %%
from tempfile import TemporaryDirectory

import editors

with TemporaryDirectory() as folder:
    editor = editors.FTL.train(vlm, samples, layers=None, out=folder)
edit = editor.edit(vlm, request)
print("before:", vlm.generate(batch, max_new_tokens=4))
with edit.applied(vlm):
    print("edited:", vlm.generate(batch, max_new_tokens=4))
print("after: ", vlm.generate(batch, max_new_tokens=4))
edit

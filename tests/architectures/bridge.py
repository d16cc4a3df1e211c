"""Compare our reads with the cache of TransformerLens, for the types that it or `attrib` adapts."""

from typing import Any

import torch
from torch import Tensor

from attrib.checks.inputs import CheckInputs
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import gather_positions, read
from attrib.model.vlm import VLM

LIMIT = 1e-4  # of the largest number; both run in float32, through other code


def is_bridged(model: Any) -> bool:
    """Whether TransformerLens has an adapter for the model, its own or ours."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    from attrib.bridges import adapters

    name = type(model).__name__
    return name in SUPPORTED_ARCHITECTURES or name in adapters.ARCHITECTURES


@torch.no_grad()
def differences(vlm: VLM) -> list[list[str]]:
    """Where our reads differ from the bridge's: [what, by how much], as failed checks."""
    inputs = CheckInputs(vlm)
    if inputs.batch.alone:  # theirs is a pass over the batch as the processor made it
        inputs = CheckInputs(vlm, inputs.images[:2], inputs.prompts[:2])
    batch, real = inputs.batch, inputs.real
    with read(vlm) as hidden, attention_rows(vlm, batch["last"]) as rows:
        logits = vlm.logits(batch)
    given = dict(batch.inputs)
    theirs, cache = vlm.to_bridge().run_with_cache(given.pop("input_ids"), **given)
    last = batch["last"].int().argmax(1)
    pairs = {"logits": (logits[real], theirs[real])}
    for layer, h in hidden.items():
        pairs[f"state after layer {layer}"] = h[real], cache["resid_post", layer][real]
    for layer, row in rows.items():
        pattern = cache["pattern", layer].transpose(1, 2)
        pairs[f"attention of layer {layer}"] = row, gather_positions(pattern, last)
    for name, value in vlm.cache(batch).items():
        if name in cache and name != "hook_embed":  # ours is all that enters layer 0
            axis = 2 if name.endswith("hook_pattern") else 1
            theirs = cache[name].movedim(axis, 1)
            pairs[name] = value.squeeze(axis), gather_positions(theirs, last)
    return [[what, miss] for what, pair in pairs.items() if (miss := _miss(*pair))]


def _miss(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    miss, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    return "" if miss <= LIMIT * max(size, 1) else f"differ by {miss:.1e} of {size:.1e}"

"""Logits at one position per example, without those of all others."""

import inspect

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from attrib.model.batch import Batch


def last_logits(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last prompt token, from one forward pass."""
    last, num_pos = batch["last"].int().argmax(1), batch["last"].shape[1]
    kept = kept_positions(model, last, num_pos)
    # A number, not a tensor: some models hand it down to their layers.
    keep = {} if kept == num_pos else {"logits_to_keep": kept}
    logits = model(**batch.inputs, **keep, use_cache=False).logits
    row = torch.arange(len(last), device=logits.device)
    return logits[row, last.to(logits.device) - num_pos + kept]


def kept_positions(model: PreTrainedModel, last: Int[Tensor, " batch"], num_pos: int) -> int:
    """How many positions, counted from the end, a model unembeds to have those of `last`.

    Most models of transformers can leave out the others. The BLIP family cannot.
    """
    can = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    return num_pos - int(last.min()) if can else num_pos

"""Logits at the last prompt token of each example, without those of all other positions."""

import inspect

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from attrib.model.batch import Batch


def logits_to_keep(model: PreTrainedModel, decoder: nn.Module, batch: Batch) -> dict[str, int]:
    """Arguments of a forward pass that unembeds the last prompt tokens and few other positions."""
    num_pos = batch["last"].shape[1]
    kept = kept_positions(model, decoder, batch["last"].int().argmax(1), num_pos)
    # A number, not a tensor: some models hand it down to their layers.
    return {} if kept == num_pos else {"logits_to_keep": kept}


def gather_last(
    logits: Float[Tensor, "batch kept d_vocab"], batch: Batch
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last prompt token, from those of the last positions or of all."""
    last, num_pos = batch["last"].int().argmax(1).to(logits.device), batch["last"].shape[1]
    row = torch.arange(len(last), device=logits.device)
    return logits[row, last - num_pos + logits.shape[1]]


def kept_positions(
    model: PreTrainedModel, decoder: nn.Module, last: Int[Tensor, " batch"], num_pos: int
) -> int:
    """How many positions, counted from the end, a model unembeds to have those of `last`.

    Most models of transformers can leave out the others. The BLIP family cannot. A decoder that is
    told too (Gemma 4) leaves them out of its last layers, whose states analyses need.
    """
    told = [_takes_it(one) for one in (model, decoder)]
    return num_pos - int(last.min()) if told[0] and not told[1] else num_pos


def _takes_it(module: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(type(module).forward).parameters

"""The logit lens: what each layer's state would say if it were the last one.

A state is normed and unembedded as the last layer's output is (nostalgebraist, 2020). At the last
layer the result is the model's own prediction. Visual tokens have states as well: theirs often name
what their patch shows (Neo et al., 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

TOP = 5
LARGEST = 2**24  # logits at a time: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class Lens:
    """The likeliest tokens of some states.

    Attributes:
        tokens: Their ids, the likeliest first.
        probabilities: Theirs.
    """

    tokens: Int[Tensor, "*states top"]
    probabilities: Float[Tensor, "*states top"]


@torch.no_grad()
def lens_of(vlm: VLM, states: Float[Tensor, "*states d_model"], top: int = TOP) -> Lens:
    """The `top` likeliest tokens of states of the residual stream, in float32.

    Raises:
        AttribError: `top` is not positive.
    """
    if top < 1:
        raise AttribError(f"top: expected 1 or more tokens, got {top}")
    flat = states.reshape(-1, states.shape[-1])
    ids, values = [], []
    rows = max(1, LARGEST // vlm.components.head.weight.shape[0])
    for some in flat.split(rows):
        logits = vlm.unembed_float32(some)
        best = logits.topk(min(top, logits.shape[-1]), -1)
        values.append((best.values - logits.logsumexp(-1, keepdim=True)).exp())
        ids.append(best.indices)
    shape = (*states.shape[:-1], -1)
    return Lens(torch.cat(ids).reshape(shape), torch.cat(values).reshape(shape))


@torch.no_grad()
def logit_lens(vlm: VLM, batch: Batch, layers: Iterable[int] | None = None, top: int = TOP) -> Lens:
    """The likeliest tokens of every layer's output at every position, visual tokens as well.

    Args:
        vlm: The model.
        batch: Prompts with their images.
        layers: The layers, in the order of the result; all by default.
        top: Number of tokens.

    Returns:
        Tokens and probabilities, "batch layer pos top"; those of padding mean nothing.
    """
    chosen = list(range(vlm.num_layers) if layers is None else layers)
    with read(vlm, chosen) as hidden:
        vlm.last_logits(batch)
    each = [lens_of(vlm, hidden[layer], top) for layer in chosen]
    device = batch["last"].device
    return Lens(
        torch.stack([lens.tokens.to(device) for lens in each], 1),
        torch.stack([lens.probabilities.to(device) for lens in each], 1),
    )

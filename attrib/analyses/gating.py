"""Similarity of an edit to other inputs in each layer's states (DualEdit, Eq. 4, Fig. 4).

A gate applies an edit where the input resembles the edit sample: the cosine of two hidden states of
one layer. Four states are compared: the mean over the visual tokens, the mean over the text tokens
of the prompt, the last prompt token, and the last target token. The last of these **leaks**: it
comes after the teacher-forced answer and so encodes the gold answer, which no gate sees when the
model is used. The published program compares it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attrib.data import EditRequest, EditSample
from attrib.data.rows import typed_hard_locality
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables
from attrib.vocabulary import GateToken, Span

TOKENS: tuple[GateToken, ...] = get_args(GateToken)
SPAN_OF: dict[GateToken, Span] = {
    "visual_mean": "visual", "text_mean": "text", "prompt_last": "last",
}  # fmt: skip
LEAKING: GateToken = "target_last"
RELATIONS = ("text_generality", "visual_generality", "text_locality", "visual_locality")


@torch.no_grad()
def gate_similarity(
    vlm: VLM,
    edits: Batch,
    others: Batch,
    layer: int | None,
    token: GateToken = "prompt_last",
) -> Float[Tensor, "batch *layer"]:
    """Cosine similarity of each edit to the other input of the same row.

    Args:
        vlm: The model.
        edits: The edit samples.
        others: Inputs to compare with: row i with row i of `edits`. Prompts, images and padding may
            differ.
        layer: Layer whose output is compared; None for every layer.
        token: "visual_mean" or "text_mean", the mean over the visual tokens or over the text tokens
            of the prompt; "prompt_last", the last prompt token, which a gate can see in use;
            "target_last", the last target token, which leaks the answer (DualEdit's program) and
            needs batches encoded with targets.

    Returns:
        One number per row, Float " batch", or for `layer=None` Float "batch layer"; in [-1, 1],
        NaN where one of the two inputs has no such token (no image, no "visual_mean").

    Raises:
        AttribError: Batches of different sizes, an unknown layer or token, missing targets.
    """
    if edits.size != others.size:
        raise AttribError(
            f"{edits.size} edits and {others.size} others: row i is compared with row i, so both "
            "batches need the same size"
        )
    layers = range(vlm.num_layers) if layer is None else [layer]
    one, two = (gate_states(vlm, batch, [token], layers) for batch in (edits, others))
    similarity = cosine_similarity(one, two, dim=-1)[..., 0]
    return similarity if layer is None else similarity[:, 0]


@torch.no_grad()
def gate_states(
    vlm: VLM,
    batch: Batch,
    tokens: Sequence[GateToken] = TOKENS,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "batch layer token d_model"]:
    """The states that a gate compares, of several layers in one forward pass.

    In float32 or better; NaN where an example has no such token. Targets come after the prompt and
    change only the state "target_last".
    """
    masks = [token_positions(batch, token) for token in tokens]
    layers = range(vlm.num_layers) if layers is None else layers
    with read(vlm, layers) as hidden:
        vlm.last_logits(batch)
    first = hidden[layers[0]].device
    states = [
        torch.stack([_mean_at(hidden[layer], at) for at in masks], dim=1).to(first)
        for layer in layers
    ]
    return torch.stack(states, dim=1)


def token_positions(batch: Batch, token: GateToken) -> Bool[Tensor, "batch pos"]:
    """The positions whose mean a gate compares."""
    if token in SPAN_OF:
        return batch[SPAN_OF[token]]
    if token != "target_last":
        raise AttribError(f"token: expected one of {', '.join(TOKENS)}, got {token!r}")
    if "target" not in batch.spans:
        raise AttribError('token "target_last" needs vlm.encode(images, prompts, targets)')
    target = batch["target"]
    return target & (target.flip(1).cumsum(1).flip(1) == 1)


def _mean_at(
    h: Float[Tensor, "batch pos d_model"], at: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_model"]:
    h, at = h.to(torch.promote_types(h.dtype, torch.float32)), at.to(h.device)
    # Selected, not multiplied by zero: padding may hold any value.
    return torch.where(at[..., None], h, 0).sum(1) / at.sum(1)[:, None]


class Related(NamedTuple):
    """An input that a sample's edit is judged by.

    Attributes:
        row: Index of the sample.
        relation: One of `RELATIONS`, or the type of a hard locality input.
        item: Index among the sample's inputs of that relation.
        request: The input.
    """

    row: int
    relation: str
    item: int
    request: EditRequest


def measure_gate(vlm: VLM, _batch: Batch, samples: Sequence[EditSample]) -> Tables:
    """Table "gate": example, layer, token, value, relation, item.

    A value is the cosine similarity of the sample's request to one related input, both
    teacher-forced with their targets; only "target_last", the leaking token, depends on those. One
    forward pass per related input and one for the request.
    """
    size, ids = len(samples), np.array([sample.id for sample in samples], dtype=object)
    edits = _states(vlm, [sample.request for sample in samples])
    items = list(related(samples))
    if not items:
        raise AttribError("a gate needs generality and locality inputs; this sample has none")
    # Inputs of one relation have similar lengths: less padding.
    order = sorted(range(len(items)), key=lambda i: (items[i].relation, i))
    values = np.empty((len(items), *edits.shape[1:3]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        states = _states(vlm, [items[i].request for i in chosen])
        own = edits[[items[i].row for i in chosen]]
        values[chosen] = cosine_similarity(own, states, dim=-1).cpu().numpy()
    table = tidy(values, example=range(len(items)), layer=range(vlm.num_layers), token=TOKENS)
    at = table["example"].to_numpy()
    return {
        "gate": table.assign(
            example=ids[[item.row for item in items]][at],
            relation=np.array([item.relation for item in items], dtype=object)[at],
            item=np.array([item.item for item in items])[at],
        )
    }


def related(samples: Sequence[EditSample]) -> Iterator[Related]:
    """Every input that the samples' edits are judged by, sample by sample."""
    for row, sample in enumerate(samples):
        inputs = [(name, request) for name in RELATIONS for request in getattr(sample, name)]
        inputs += typed_hard_locality(sample)
        counts: dict[str, int] = {}
        for relation, request in inputs:
            item = counts.get(relation, 0)
            counts[relation] = item + 1
            yield Related(row, relation, item, request)


def _states(
    vlm: VLM, requests: Sequence[EditRequest]
) -> Float[Tensor, "batch layer token d_model"]:
    images = [request.image for request in requests]
    prompts, targets = ([getattr(r, name) for r in requests] for name in ("prompt", "target"))
    with torch.no_grad():
        return gate_states(vlm, vlm.encode(images, prompts, targets))

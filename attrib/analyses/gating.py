"""How alike an edit and another input look inside the model (DualEdit, Eq. 4 and Fig. 4).

A gate lets an edit act where the input resembles the edit sample. The resemblance is the cosine of
two hidden states of one layer. Four states are compared: the mean over the visual tokens, the mean
over the words of the prompt, the last prompt token, and the last target token. The last of these
**leaks**: it is read behind the teacher-forced answer, so it knows the gold answer that the gate is
to decide about; no gate can see it when the model is used. The published program compares it.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collect import Tables

Token = Literal["visual_mean", "text_mean", "prompt_last", "target_last"]
TOKENS: tuple[Token, ...] = get_args(Token)
LEAKING: Token = "target_last"


@torch.no_grad()
def gate_similarity(
    vlm: VLM,
    edits: Batch,
    others: Batch,
    layer: int | None,
    token: Token = "prompt_last",
) -> Float[Tensor, "batch *layer"]:
    """Cosine similarity of each edit to the other input of the same row.

    Args:
        vlm: The model.
        edits: The edit samples.
        others: What they are compared with: row i with row i of `edits`. Prompts, images and
            padding may differ.
        layer: Whose output is compared; None for every layer.
        token: "visual_mean" or "text_mean", the mean over the visual tokens or over the words of
            the prompt; "prompt_last", the last prompt token, which a gate can see when it is used;
            "target_last", the last target token, which leaks the answer (what DualEdit's program
            does). The last one needs batches encoded with targets.

    Returns:
        One number per row, Float " batch", or for `layer=None` Float "batch layer"; in [-1, 1],
        NaN where one of the two has no such token (no image, no "visual_mean").

    Raises:
        AttribError: Batches of different sizes, an unknown layer or token, missing targets.
    """
    if edits.size != others.size:
        raise AttribError(
            f"{edits.size} edits and {others.size} others: row i is compared with row i, so give "
            "two batches of one size"
        )
    layers = range(vlm.num_layers) if layer is None else [layer]
    one, two = (gate_states(vlm, batch, [token], layers) for batch in (edits, others))
    similarity = cosine_similarity(one, two, dim=-1)[..., 0]
    return similarity if layer is None else similarity[:, 0]


@torch.no_grad()
def gate_states(
    vlm: VLM,
    batch: Batch,
    tokens: Sequence[Token] = TOKENS,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "batch layer token d_model"]:
    """The states that a gate compares, of several layers in one forward pass.

    In float32 or better; NaN where an example has no such token. Targets, where the batch has them,
    lie behind the prompt and change none of the states but "target_last".
    """
    masks = [token_positions(batch, token) for token in tokens]
    layers = range(vlm.num_layers) if layers is None else layers
    with read(vlm, layers) as hidden:
        vlm.logits(batch)
    first = hidden[layers[0]].device
    states = [
        torch.stack([_mean_at(hidden[layer], at) for at in masks], dim=1).to(first)
        for layer in layers
    ]
    return torch.stack(states, dim=1)


def token_positions(batch: Batch, token: Token) -> Bool[Tensor, "batch pos"]:
    """The positions whose mean a gate compares."""
    if token == "visual_mean":
        return batch["visual"]
    if token == "text_mean":
        return batch["text"]
    if token == "prompt_last":
        return batch["last"]
    if token != "target_last":
        raise AttribError(f"token: expected one of {', '.join(TOKENS)}, got {token!r}")
    if "target" not in batch.spans:
        raise AttribError('token "target_last" needs vlm.encode(images, prompts, targets)')
    target = batch["target"]
    after = target.flip(1).cumsum(1).flip(1)
    return target & (after == 1)


def _mean_at(
    h: Float[Tensor, "batch pos d_model"], at: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_model"]:
    h, at = h.to(torch.promote_types(h.dtype, torch.float32)), at.to(h.device)
    # Chosen, not multiplied by zero: what stands in padding may be anything.
    return torch.where(at[..., None], h, 0).sum(1) / at.sum(1)[:, None]


class Related(NamedTuple):
    """An input that a sample is judged by.

    Attributes:
        row: of the sample.
        relation: "text_generality", "visual_generality", "text_locality", "visual_locality", or
            the type of a hard locality input.
        item: number among the sample's inputs of that relation.
        request: the input.
    """

    row: int
    relation: str
    item: int
    request: EditRequest


def measure_gate(vlm: VLM, _batch: Batch, samples: Sequence[EditSample]) -> Tables:
    """The table "gate": example, layer, token, value, relation, item.

    A value is the cosine similarity of the sample's request to one related input, both
    teacher-forced with their targets: only "target_last", which is named as leaking, depends on
    those. As many forward passes as there are related inputs of a sample, and one for the request.
    """
    size = len(samples)
    edits = _states(vlm, [sample.request for sample in samples])
    items = list(related(samples))
    if not items:
        raise AttribError("a gate needs generality and locality inputs; this sample has none")
    # Inputs of one kind are of like length: less padding.
    order = sorted(range(len(items)), key=lambda i: (items[i].relation, i))
    values = np.empty((len(items), *edits.shape[1:3]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        states = _states(vlm, [items[i].request for i in chosen])
        own = edits[[items[i].row for i in chosen]]
        values[chosen] = cosine_similarity(own, states, dim=-1).cpu().numpy()
    return {"gate": _table(values, items, [sample.id for sample in samples])}


def related(samples: Sequence[EditSample]) -> Iterator[Related]:
    """Every input that the samples are judged by, sample by sample."""
    for row, sample in enumerate(samples):
        counts: dict[str, int] = {}
        for relation, request in _inputs(sample):
            item = counts.get(relation, 0)
            counts[relation] = item + 1
            yield Related(row, relation, item, request)


def _inputs(sample: EditSample) -> Iterator[tuple[str, EditRequest]]:
    for relation in ("text_generality", "visual_generality", "text_locality", "visual_locality"):
        for request in getattr(sample, relation):
            yield relation, request
    types = sample.meta.get("hard_types") or ["hard_locality"] * len(sample.hard_locality)
    yield from zip(types, sample.hard_locality, strict=True)


def _states(
    vlm: VLM, requests: Sequence[EditRequest]
) -> Float[Tensor, "batch layer token d_model"]:
    images = [request.image for request in requests]
    prompts, targets = ([getattr(r, name) for r in requests] for name in ("prompt", "target"))
    with torch.no_grad():
        return gate_states(vlm, vlm.encode(images, prompts, targets))


def _table(
    values: Float[np.ndarray, "item layer token"], items: Sequence[Related], ids: Sequence[str]
) -> pd.DataFrame:
    num_items, num_layers, num_tokens = values.shape
    table = tidy(values, example=range(num_items), layer=range(num_layers), token=TOKENS)
    number = np.repeat(np.arange(num_items), num_layers * num_tokens)

    def column(labels: Sequence[object]) -> pd.Series:
        return pd.Series(labels).take(number).reset_index(drop=True)

    return table.assign(
        example=column([ids[item.row] for item in items]),
        relation=column([item.relation for item in items]),
        item=column([item.item for item in items]),
    )

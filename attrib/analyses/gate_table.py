"""How alike an edit is to the inputs it is judged by, in every layer (DualEdit, Fig. 4)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attrib.analyses.first_table import Tables
from attrib.analyses.gating import TOKENS, gate_states
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy


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

"""Pairs of an input and an edit to learn a gate from: what an edit covers, and what it must not.

Besides what a sample says of its own inputs there are pairs that follow from it: inputs of other
samples; text-only questions, each with itself and with others; and pairs whose images are not to be
looked at, as if neither had one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editors.gating.features import VISUAL
from editors.gating.inputs import COVERED, RelatedInput

OTHERS = 4  # inputs of other samples that each edit is compared with
WEIGHTS = {"own": 1.0, "other": 0.5, "text": 0.5, "hidden": 0.25}


@dataclass(frozen=True, eq=False)
class InputStates:
    """Inputs and their states.

    Attributes:
        inputs: Which input of which sample each is.
        states: What was picked of each.
    """

    inputs: Sequence[RelatedInput]
    states: Sequence[Mapping[str, Tensor]]

    def of(self, rows: Sequence[int]) -> "Kept":
        """The inputs of some samples, which are then counted from 0 in the order of `rows`."""
        number = {row: i for i, row in enumerate(rows)}
        keep = [i for i, one in enumerate(self.inputs) if one.row in number]
        keep.sort(key=lambda i: number[self.inputs[i].row])
        inputs = [self.inputs[i]._replace(row=number[self.inputs[i].row]) for i in keep]
        return InputStates(inputs, [self.states[i] for i in keep])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of inputs, by their numbers.

    Attributes:
        query: The input that comes.
        edit: The input that the edit was made from.
        covered: Whether the edit must be served.
        weight: In the loss.
        hidden: Whether the images are not to be looked at.
    """

    query: Int[Tensor, " pair"]
    edit: Int[Tensor, " pair"]
    covered: Bool[Tensor, " pair"]
    weight: Float[Tensor, " pair"]
    hidden: Bool[Tensor, " pair"]


@dataclass(frozen=True)
class _Pair:
    query: int
    edit: int
    covered: bool
    kind: str


def pairs_of(kept: InputStates, generator: torch.Generator) -> Pairs:
    """Pairs among inputs of some samples, those of a sample one behind the other.

    The edit of a sample is its request or, half of the time, another input that it covers.
    """
    edits = _edits(kept, generator)
    own = [_Pair(i, edits[r.row], r.relation in COVERED, "own") for i, r in enumerate(kept.inputs)]
    found = [*own, *_others(kept, edits, generator), *_texts(kept), *_hidden(kept, own)]
    return Pairs(
        torch.tensor([pair.query for pair in found]),
        torch.tensor([pair.edit for pair in found]),
        torch.tensor([pair.covered for pair in found]),
        torch.tensor([WEIGHTS[pair.kind] for pair in found]),
        torch.tensor([pair.kind == "hidden" for pair in found]),
    )


def _edits(kept: InputStates, generator: torch.Generator) -> list[int]:
    covered: dict[int, list[int]] = {}
    for i, one in enumerate(kept.inputs):
        if one.relation in COVERED:
            covered.setdefault(one.row, []).append(i)  # the request comes first
    draws = torch.rand(len(covered), 2, generator=generator).tolist()
    return [
        some[0] if first < 0.5 else some[int(which * len(some))]
        for some, (first, which) in zip(covered.values(), draws, strict=True)
    ]


def _others(kept: InputStates, edits: Sequence[int], generator: torch.Generator) -> list[_Pair]:
    drawn = torch.randint(len(kept.inputs), (len(edits), OTHERS), generator=generator).tolist()
    return [
        _Pair(i, edit, False, "other")
        for row, (edit, some) in enumerate(zip(edits, drawn, strict=True))
        for i in some
        if kept.inputs[i].row != row
    ]


def _texts(kept: InputStates) -> list[_Pair]:
    """Each text-only question with itself and with the next one."""
    texts = [i for i, one in enumerate(kept.states) if not len(one[VISUAL])]
    prompt = [kept.inputs[i].request.prompt for i in texts]
    return [
        _Pair(i, texts[other], prompt[number] == prompt[other], "text")
        for number, i in enumerate(texts)
        for other in {number, (number + 1) % len(texts)}
    ]


def _hidden(kept: InputStates, own: Sequence[_Pair]) -> list[_Pair]:
    seen = [
        p for p in own if len(kept.states[p.query][VISUAL]) and len(kept.states[p.edit][VISUAL])
    ]
    prompt = [one.request.prompt for one in kept.inputs]
    # Without their images the same words about another image are the same question.
    return [
        _Pair(p.query, p.edit, p.covered, "hidden")
        for p in seen
        if p.covered or prompt[p.query] != prompt[p.edit]
    ]

"""Training pairs of a gate: an input, an edit, and whether the edit covers the input.

A sample's own inputs are labelled by the sample. Further pairs follow from them: inputs of other
samples, text-only questions paired with themselves and with others, and pairs whose images are
hidden from the gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editors.gating.features import APPLIES, VISUAL, RelatedInput

OTHERS = 4  # inputs of other samples that each edit is paired with
WEIGHTS = {"own": 1.0, "other": 0.5, "text": 0.5, "hidden": 0.25}


@dataclass(frozen=True, eq=False)
class InputStates:
    """Inputs of samples with the features of each."""

    inputs: Sequence[RelatedInput]
    states: Sequence[Mapping[str, Tensor]]

    def select(self, rows: Sequence[int]) -> "InputStates":
        """Return the inputs of some samples, renumbered from 0 in the order of `rows`."""
        number = {row: i for i, row in enumerate(rows)}
        keep = [i for i, one in enumerate(self.inputs) if one.row in number]
        keep.sort(key=lambda i: number[self.inputs[i].row])
        inputs = [self.inputs[i]._replace(row=number[self.inputs[i].row]) for i in keep]
        return InputStates(inputs, [self.states[i] for i in keep])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of inputs, by index.

    Attributes:
        query: The input.
        edit: The input that the edit was made from.
        covered: Whether the edit applies to the input.
        weight: Weight in the loss.
        hidden: Whether the gate is to ignore both images.
    """

    query: Int[Tensor, " pair"]
    edit: Int[Tensor, " pair"]
    covered: Bool[Tensor, " pair"]
    weight: Float[Tensor, " pair"]
    hidden: Bool[Tensor, " pair"]


class _Pair(NamedTuple):
    query: int
    edit: int
    covered: bool
    kind: str


def sample_pairs(data: InputStates, generator: torch.Generator) -> Pairs:
    """Draw pairs among the inputs of some samples.

    The edit of a sample is its request or, half of the time, another input that it covers.
    """
    edits = _edits(data, generator)
    own = [_Pair(i, edits[r.row], r.relation in APPLIES, "own") for i, r in enumerate(data.inputs)]
    drawn = torch.randint(len(data.inputs), (len(edits), OTHERS), generator=generator).tolist()
    others = [
        _Pair(i, edit, False, "other")
        for row, (edit, some) in enumerate(zip(edits, drawn, strict=True))
        for i in some
        if data.inputs[i].row != row
    ]
    found = [*own, *others, *_texts(data), *_hidden(data, own)]
    query, edit, covered, kinds = zip(*found, strict=True)
    return Pairs(
        torch.tensor(query),
        torch.tensor(edit),
        torch.tensor(covered),
        torch.tensor([WEIGHTS[kind] for kind in kinds]),
        torch.tensor([kind == "hidden" for kind in kinds]),
    )


def _edits(data: InputStates, generator: torch.Generator) -> list[int]:
    covered: dict[int, list[int]] = {}
    for i, one in enumerate(data.inputs):
        if one.relation in APPLIES:
            covered.setdefault(one.row, []).append(i)  # the request comes first
    draws = torch.rand(len(covered), 2, generator=generator).tolist()
    return [
        some[0] if first < 0.5 else some[int(which * len(some))]
        for some, (first, which) in zip(covered.values(), draws, strict=True)
    ]


def _texts(data: InputStates) -> list[_Pair]:
    """Pair each text-only question with itself and with the next one."""
    texts = [i for i, one in enumerate(data.states) if not len(one[VISUAL])]
    prompt = [data.inputs[i].request.prompt for i in texts]
    return [
        _Pair(i, texts[other], prompt[number] == prompt[other], "text")
        for number, i in enumerate(texts)
        for other in {number, (number + 1) % len(texts)}
    ]


def _hidden(data: InputStates, own: Sequence[_Pair]) -> list[_Pair]:
    prompt = [one.request.prompt for one in data.inputs]
    has_image = [len(one[VISUAL]) > 0 for one in data.states]
    # Without images, the same words about another image are the same question.
    return [
        pair._replace(kind="hidden")
        for pair in own
        if has_image[pair.query] and has_image[pair.edit]
        and (pair.covered or prompt[pair.query] != prompt[pair.edit])
    ]  # fmt: skip

"""Many questions about one picture in one training sequence.

A row holds the picture once and then its segments (question and answer, caption, fact) one after
the other. A segment sees the picture and itself, never another segment, and its positions count
as if it stood there alone: training on a packed row equals training on the segments one by one,
at a fraction of the cost. Segments without a picture do not see it.
"""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """One text with its answer: token ids, and how much each predicted token counts."""

    ids: list[int]  # prompt and answer, beginning with what follows the picture
    num_prompt: int  # the answer starts here
    kind: str
    sees_picture: bool = True
    weight: float = 1.0


@dataclass(frozen=True)
class Packed:
    """Packed rows, ready for the language model; every row starts with the picture's prefix."""

    ids: Int[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row 1 pos pos"]
    labels: Int[Tensor, "row pos"]  # the next token where it is predicted, else -100
    weights: Float[Tensor, "row pos"]
    segments: Int[Tensor, "row pos"]  # which segment of the row predicts here, else -1
    kinds: list[list[str]]  # of the segments of each row


def pack(prefix: list[int], rows: list[list[Segment]], length: int, pad: int) -> Packed:
    """Lay out rows of segments behind the prefix.

    Args:
        prefix: the token ids of the picture (and of whatever stands before it).
        rows: the segments of each row; what does not fit into `length` is left out.
        length: positions per row.
        pad: the padding token.
    """
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    owner = torch.full(shape, -1)  # 0 = prefix, k = segment k - 1
    sees = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros(shape, dtype=torch.long)
    labels, segments = torch.full(shape, -100), torch.full(shape, -1)
    weights = torch.zeros(shape)
    kinds: list[list[str]] = []
    start = len(prefix)
    ids[:, :start] = torch.tensor(prefix)
    owner[:, :start] = 0
    positions[:, :start] = torch.arange(start)
    for r, row in enumerate(rows):
        kinds.append([])
        at = start
        for segment in row:
            end = at + len(segment.ids)
            if end > length:
                continue
            here, first = slice(at, end), start if segment.sees_picture else 0
            ids[r, here] = torch.tensor(segment.ids)
            positions[r, here] = torch.arange(first, first + len(segment.ids))
            kinds[-1].append(segment.kind)
            owner[r, here], sees[r, here] = len(kinds[-1]), segment.sees_picture
            predicts = slice(at + segment.num_prompt - 1, end - 1)
            labels[r, predicts] = torch.tensor(segment.ids[segment.num_prompt :])
            weights[r, predicts] = segment.weight
            segments[r, predicts] = len(kinds[-1]) - 1
            at = end
    mask = _mask(owner, sees)
    return Packed(ids, positions, mask, labels, weights, segments, kinds)


def _mask(
    owner: Int[Tensor, "row pos"], sees: Bool[Tensor, "row pos"]
) -> Bool[Tensor, "row 1 pos pos"]:
    same = owner[:, :, None] == owner[:, None, :]
    picture = sees[:, :, None] & (owner == 0)[:, None, :]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    return ((same | picture) & causal)[:, None]


def shuffled(segments: list[Segment], rng: random.Random) -> list[Segment]:
    """The segments in random order."""
    return rng.sample(segments, len(segments))

"""What a model runs in place of a batch: contexts that put something into its prompts.

A rewriter is consulted by `vlm.logits` and `vlm.generate`. What it returns is run, and logits come
back at the positions of the batch that was given, so that nobody who asks needs to know of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.model.batch import Batch
from attrib.model.encoding import pad_rows


@dataclass(frozen=True, eq=False)
class RewrittenBatch:
    """What is run in place of a batch.

    Attributes:
        batch: The examples of the batch, in their order, with other prompts.
        positions: Where each position of the batch that was given stands in it, anywhere for
            padding; None if nothing has moved.
    """

    batch: Batch
    positions: Int[Tensor, "batch pos"] | None = None

    def gather_back(
        self, values: Float[Tensor, "batch longer axis"]
    ) -> Float[Tensor, "batch pos axis"]:
        """Values of the pass, at the positions of the batch that was given."""
        if self.positions is None:
            return values
        index = self.positions.to(values.device)[..., None].expand(-1, -1, values.shape[-1])
        return values.gather(1, index)

    def compose(self, later: "RewrittenBatch") -> "RewrittenBatch":
        """Combine this rewriting with one that was applied to its result."""
        if self.positions is None:
            return later
        if later.positions is None:
            return RewrittenBatch(later.batch, self.positions)
        return RewrittenBatch(later.batch, later.positions.gather(1, self.positions))


Rewriter = Callable[[Batch], RewrittenBatch]


def apply_rewriters(rewriters: list[Rewriter], batch: Batch) -> RewrittenBatch:
    """Apply all rewriters, the last one first; the list is empty while they run."""
    result, stack = RewrittenBatch(batch), rewriters[:]
    rewriters.clear()
    try:
        for rewriter in reversed(stack):
            result = result.compose(rewriter(result.batch))
    finally:
        rewriters[:] = stack
    return result


def insert_tokens(
    batch: Batch, at: Int[Tensor, " batch"], tokens: Sequence[Sequence[int]], pad_id: int
) -> RewrittenBatch:
    """A batch with tokens put in front of one position of each example.

    They belong to the prompt's text. Rows are padded on the side they were.

    Args:
        batch: The examples.
        at: The positions.
        tokens: Per example what to put there; nothing at all leaves the batch as it is.
        pad_id: What to fill up shorter rows with.
    """
    if not any(tokens):
        return RewrittenBatch(batch)
    real = batch.inputs["attention_mask"].bool()
    before = [int(row[:i].sum()) for row, i in zip(real, at.tolist(), strict=True)]
    rows = [_row(batch, i, before[i], tokens[i]) for i in range(batch.size)]
    padded = pad_rows(rows, pad_id, "left" if bool(real[:, -1].all()) else "right")
    inputs = batch.inputs | {key: value.to(real.device) for key, value in padded.items()}
    positions = _moved(real, inputs["attention_mask"].bool(), before, list(map(len, tokens)))
    return RewrittenBatch(_at(batch, inputs, real, positions), positions)


def _row(batch: Batch, i: int, before: int, tokens: Sequence[int]) -> dict[str, list[int]]:
    """An example without its padding, with the tokens behind its first `before` ones."""
    real, row = batch.inputs["attention_mask"][i].bool(), {}
    for key, value in batch.inputs.items():
        if key == "input_ids" or key.endswith("token_type_ids"):
            own = value[i, real].tolist()
            # Types mark images (Gemma 3, Qwen-VL) or answers (PaliGemma): words of prompts are 0.
            new = list(tokens) if key == "input_ids" else [0] * len(tokens)
            row[key] = [*own[:before], *new, *own[before:]]
    return row


def _moved(
    real: Bool[Tensor, "batch pos"],
    now: Bool[Tensor, "batch longer"],
    before: Sequence[int],
    added: Sequence[int],
) -> Int[Tensor, "batch pos"]:
    """Where each position of a batch stands once tokens were added to its rows."""
    positions = torch.zeros(real.shape, dtype=torch.long, device=real.device)
    for i, (first, num) in enumerate(zip(before, added, strict=True)):
        there = now[i].nonzero()[:, 0]
        positions[i, real[i]] = torch.cat([there[:first], there[first + num :]])
    return positions


def _at(
    batch: Batch, inputs: dict[str, Any], real: Bool[Tensor, "batch pos"], positions: Tensor
) -> Batch:
    """The batch of the longer inputs: spans and labels have moved, what is new is text."""
    row, column = real.nonzero(as_tuple=True)
    moved = row, positions[row, column]
    shape = inputs["attention_mask"].shape

    def put(values: Tensor, fill: int) -> Tensor:
        new = torch.full(shape, fill, dtype=values.dtype, device=values.device)
        new[moved] = values[row, column]
        return new

    spans = {name: put(span, 0) for name, span in batch.spans.items()}
    old = put(torch.ones_like(real), 0)
    spans["text"] = spans["text"] | (inputs["attention_mask"].bool() & ~old)
    labels = None if batch.labels is None else put(batch.labels, -100)
    return replace(batch, inputs=inputs, spans=spans, labels=labels)

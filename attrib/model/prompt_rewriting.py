"""Rewrite the prompts of a batch, such as text in front of every question.

`vlm.rewrite_prompts` applies a rewriter to the batches of `vlm.logits` and `vlm.generate`. Logits
are returned at the positions of the original batch, so callers need not know of the rewriting.
Contexts nest: the innermost rewriter is applied first. None applies inside a rewriter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.model.batch import Batch
from attrib.model.encoding import pad_rows, unpadded_rows


@dataclass(frozen=True, eq=False)
class RewrittenBatch:
    """A batch that is run in place of another one.

    Attributes:
        batch: The same examples in the same order, with other prompts.
        positions: New position of each position of the original batch, arbitrary for padding; None
            if no position has moved.
    """

    batch: Batch
    positions: Int[Tensor, "batch pos"] | None = None

    def gather_back(
        self, values: Float[Tensor, "batch longer axis"]
    ) -> Float[Tensor, "batch pos axis"]:
        """Return values of the rewritten batch at the positions of the original one."""
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
    result = RewrittenBatch(batch)
    with without(rewriters) as stack:
        for rewriter in reversed(stack):
            result = result.compose(rewriter(result.batch))
    return result


@contextmanager
def without(rewriters: list[Rewriter]) -> Iterator[list[Rewriter]]:
    """Batches run as they are inside the context; yields the rewriters, which are put back."""
    stack = rewriters[:]
    rewriters.clear()
    try:
        yield stack
    finally:
        rewriters[:] = stack


def insert_tokens(
    batch: Batch, at: Int[Tensor, " batch"], tokens: Sequence[Sequence[int]], pad_id: int
) -> RewrittenBatch:
    """Insert tokens in front of one position of each example, as text of the prompt.

    Args:
        batch: The examples; the padding side is kept.
        at: One position per example.
        tokens: Token ids per example; the batch is unchanged if all are empty.
        pad_id: Id of padding.
    """
    if not any(tokens):
        return RewrittenBatch(batch)
    real = batch.inputs["attention_mask"].bool()
    before = [int(row[:i].sum()) for row, i in zip(real, at.tolist(), strict=True)]
    added = list(zip(before, tokens, strict=True))
    rows = [
        # Token types mark images (Gemma 3, Qwen-VL) or answers (PaliGemma): prompt text is 0.
        {
            key: [*old[:i], *(new if key == "input_ids" else [0] * len(new)), *old[i:]]
            for key, old in row.items()
        }
        for row, (i, new) in zip(unpadded_rows(batch.inputs), added, strict=True)
    ]
    padded = pad_rows(rows, pad_id, "left" if bool(real[:, -1].all()) else "right")
    inputs = batch.inputs | {key: value.to(real.device) for key, value in padded.items()}
    positions = torch.zeros(real.shape, dtype=torch.long, device=real.device)
    for example, (i, new) in enumerate(added):
        columns = inputs["attention_mask"][example].nonzero()[:, 0]
        positions[example, real[example]] = torch.cat([columns[:i], columns[i + len(new) :]])
    return RewrittenBatch(_with_inputs(batch, inputs, positions), positions)


def _with_inputs(
    batch: Batch, inputs: dict[str, Any], positions: Int[Tensor, "batch pos"]
) -> Batch:
    """Return the batch of the longer inputs, its spans moved to the new positions."""
    real, new_real = (each["attention_mask"].bool() for each in (batch.inputs, inputs))
    row, column = real.nonzero(as_tuple=True)

    def moved(span: Tensor) -> Tensor:
        new = torch.zeros_like(new_real)
        new[row, positions[row, column]] = span[row, column]
        return new

    spans = {name: moved(span) for name, span in batch.spans.items()}
    inserted = new_real & ~moved(real)
    spans["text"] = spans["text"] | inserted
    return replace(batch, inputs=inputs, spans=spans)


@contextmanager
def pushed(stack: list[Any], item: Any) -> Iterator[None]:
    """Keep an item on top of a stack inside the context."""
    stack.append(item)
    try:
        yield
    finally:
        stack.pop()

"""Edits that change the prompt: text in front of the question, selected per example.

The text goes after the image and before the prompt, as if the prompt began with it. It is inserted
as tokens, so that the tokens of image and question do not change; a Q-Former that reads the
question as well (InstructBLIP) still reads the question alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.prompt_rewriting import RewrittenBatch, insert_tokens
from attrib.model.vlm import VLM

PROBES = "ab"  # two prompts, each a token of its own
NO_TEXT = -1


@runtime_checkable
class Selector(Protocol):
    """Selects a text for each example of a batch."""

    @property
    def num_bytes(self) -> int:
        """Bytes of what it stores."""
        ...

    def __call__(self, vlm: VLM, batch: Batch, starts: "PromptStarts") -> Sequence[int]:
        """The index of each example's text, `NO_TEXT` for none."""
        ...


@dataclass(frozen=True, eq=False)
class PromptEdit:
    """Text in front of questions.

    Attributes:
        texts: The texts.
        facts: The edit request of each text.
        select: Selects the text of an example; None gives every example the only one.
    """

    texts: tuple[str, ...]
    facts: tuple[EditRequest, ...] = ()
    select: Selector | None = None

    def __post_init__(self):
        if self.select is None and len(self.texts) != 1:
            raise AttribError(
                f"{len(self.texts)} texts need something that selects one per example; give "
                "`select`, or apply one edit at a time"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the texts, and of what selects them."""
        own = sum(len(text.encode()) for text in self.texts)
        return own + (self.select.num_bytes if self.select else 0)

    def __repr__(self) -> str:
        return f"PromptEdit({len(self.texts)} texts, {self.num_bytes:,} bytes)"

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Insert the text in front of the questions of `vlm.logits` and `vlm.generate`."""
        starts = PromptStarts.of(vlm)
        ids = cache(lambda index: () if index == NO_TEXT else text_tokens(vlm, self.texts[index]))

        def rewrite(batch: Batch) -> RewrittenBatch:
            indices = self.select(vlm, batch, starts) if self.select else [0] * batch.size
            return prepend_to_prompts(vlm, batch, starts, [ids(index) for index in indices])

        with vlm.rewrite_prompts(rewrite):
            yield


@dataclass(frozen=True)
class PromptStarts:
    """Where the words of a prompt begin, found by encoding two prompts and comparing them.

    Attributes:
        after_image: Number of tokens between an image's last token and the words.
        without_image: Number of tokens before the words if there is no image.
    """

    after_image: int
    without_image: int

    @classmethod
    def of(cls, vlm: VLM) -> "PromptStarts":
        """Find them for a model."""
        seen = vlm.encode([Image.new("RGB", (64, 64), "grey")] * 2, list(PROBES))
        rows = [row[int(at.nonzero().max()) + 1 :] for row, at in _rows(seen, seen["visual"])]
        alone = vlm.encode([None] * 2, list(PROBES))
        without = [row for row, _ in _rows(alone, alone["text"])]
        return cls(_num_common(rows), _num_common(without))

    def first_words(self, batch: Batch) -> Int[Tensor, " batch"]:
        """Position of the first word of each prompt."""
        ends = batch["last"].int().argmax(1) + 1
        real = batch.inputs["attention_mask"].bool()
        index = torch.arange(real.shape[1], device=real.device)
        after = torch.where(batch["visual"], index + 1, 0).amax(1) + self.after_image
        first = real.int().argmax(1) + self.without_image
        return torch.minimum(torch.where(batch["visual"].any(1), after, first), ends)

    def prompts(self, vlm: VLM, batch: Batch) -> list[str]:
        """The words of each prompt."""
        index = torch.arange(batch["last"].shape[1], device=batch["last"].device)
        words = batch["text"] & (index >= self.first_words(batch)[:, None])
        ids = batch.inputs["input_ids"]
        rows = [row[at].tolist() for row, at in zip(ids, words, strict=True)]
        return [text.strip() for text in vlm.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def prepend_to_prompts(
    vlm: VLM, batch: Batch, starts: PromptStarts, tokens: Sequence[Sequence[int]]
) -> RewrittenBatch:
    """A batch with tokens in front of the words of each prompt.

    Raises:
        AttribError: The model has too few positions for them.
    """
    run = insert_tokens(batch, starts.first_words(batch), tokens, vlm.pad_id)
    length, most = run.batch["last"].shape[1], max_positions(vlm)
    if most is not None and length > most:
        raise AttribError(
            f"with the text in front of it an input has {length} tokens, but {vlm.name} has "
            f"{most} positions; use shorter text (for ike fewer demonstrations or more room)"
        )
    return run


def text_tokens(vlm: VLM, text: str) -> tuple[int, ...]:
    """The tokens of a text that precedes another one, without special tokens.

    Tokenizers write the space between two words into the second one or drop it at the beginning, so
    the text is tokenized with a word after it that is then removed.
    """
    if not text:
        return ()
    both, word, alone = (
        vlm.tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"]
        for one in (text + PROBES[0], PROBES[0], text)
    )
    return tuple(both[: -len(word)] if both[-len(word) :] == word else alone)


def fact_of(request: EditRequest) -> str:
    """A prompt with its answer."""
    return f"{request.prompt} {request.target}"


def max_positions(vlm: VLM) -> int | None:
    """Number of positions of a model; None if its configuration does not give it."""
    return getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None)


def _rows(batch: Batch, at: Bool[Tensor, "batch pos"]) -> list[tuple[list[int], Tensor]]:
    """Each example's tokens without padding, and where `at` holds among them."""
    real = batch.inputs["attention_mask"].bool()
    ids = batch.inputs["input_ids"]
    return [(ids[i, real[i]].tolist(), at[i, real[i]]) for i in range(batch.size)]


def _num_common(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning of two rows."""
    one, other = rows
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)

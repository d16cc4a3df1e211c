"""Edits that change what a model is given: text in front of the question, chosen per example.

The text stands behind the image and in front of the prompt, as if the prompt had begun with it. It
is put in as tokens, so that the image's tokens and the question's stay what they are; a Q-Former
that reads the question as well (InstructBLIP) goes on reading the question alone.
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

PROBES = "ab"  # two prompts of which each is a token of its own
NO_TEXT = -1


@runtime_checkable
class Chooser(Protocol):
    """Tells which text each example of a batch is given."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept for it."""
        ...

    def __call__(self, vlm: VLM, batch: Batch, starts: "Starts") -> Sequence[int]:
        """Per example the number of its text, `NO_TEXT` for none."""
        ...


@dataclass(frozen=True, eq=False)
class PromptEdit:
    """Text in front of questions.

    Attributes:
        texts: What is put there.
        facts: What each text is about.
        choose: Tells which one an example is given; None gives all of them the one there is.
    """

    texts: tuple[str, ...]
    facts: tuple[EditRequest, ...] = ()
    choose: Chooser | None = None

    def __post_init__(self):
        if self.choose is None and len(self.texts) != 1:
            raise AttribError(
                f"{len(self.texts)} texts need something that chooses between them; give `choose`, "
                "or apply one edit at a time"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the texts, and of what chooses between them."""
        own = sum(len(text.encode()) for text in self.texts)
        return own + (self.choose.num_bytes if self.choose else 0)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Passes by `vlm.logits` and `vlm.generate` have the text in front of their questions."""
        starts = Starts.of(vlm)
        ids = cache(lambda number: () if number == NO_TEXT else front(vlm, self.texts[number]))

        def rewrite(batch: Batch) -> RewrittenBatch:
            numbers = self.choose(vlm, batch, starts) if self.choose else [0] * batch.size
            return in_front(vlm, batch, starts, [ids(number) for number in numbers])

        with vlm.rewrite_prompts(rewrite):
            yield


@dataclass(frozen=True)
class Starts:
    """Where the words of a prompt begin, found by encoding two prompts and comparing them.

    Attributes:
        behind_image: Number of tokens between an image's last token and the words.
        alone: Number of tokens in front of the words where there is no image.
    """

    behind_image: int
    alone: int

    @classmethod
    def of(cls, vlm: VLM) -> "Starts":
        """Those of a model."""
        seen = vlm.encode([Image.new("RGB", (64, 64), "grey")] * 2, list(PROBES))
        rows = [row[int(at.nonzero().max()) + 1 :] for row, at in _rows(seen, seen["visual"])]
        alone = vlm.encode([None] * 2, list(PROBES))
        return cls(_num_common(rows), _num_common([row for row, _ in _rows(alone, alone["text"])]))

    def of_prompts(self, batch: Batch) -> Int[Tensor, " batch"]:
        """Per example the position of the first word of its prompt."""
        ends = batch["last"].int().argmax(1) + 1
        real = batch.inputs["attention_mask"].bool()
        index = torch.arange(real.shape[1], device=real.device)
        behind = torch.where(batch["visual"], index + 1, 0).amax(1) + self.behind_image
        first = real.int().argmax(1) + self.alone
        return torch.minimum(torch.where(batch["visual"].any(1), behind, first), ends)

    def prompts(self, vlm: VLM, batch: Batch) -> list[str]:
        """The words of each prompt."""
        index = torch.arange(batch["last"].shape[1], device=batch["last"].device)
        words = batch["text"] & (index >= self.of_prompts(batch)[:, None])
        ids = batch.inputs["input_ids"]
        rows = [row[at].tolist() for row, at in zip(ids, words, strict=True)]
        return [text.strip() for text in vlm.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def in_front(
    vlm: VLM, batch: Batch, starts: Starts, tokens: Sequence[Sequence[int]]
) -> RewrittenBatch:
    """A batch with tokens in front of the words of each prompt.

    Raises:
        AttribError: The model has fewer positions than that.
    """
    run = insert_tokens(batch, starts.of_prompts(batch), tokens, vlm.pad_id)
    length, most = run.batch["last"].shape[1], num_positions(vlm)
    if most is not None and length > most:
        raise AttribError(
            f"with the text in front of it an input has {length} tokens, but {vlm.name} has "
            f"{most} positions; use shorter text (for ike fewer demonstrations or more room)"
        )
    return run


def front(vlm: VLM, text: str) -> tuple[int, ...]:
    """The tokens of a text as it stands in front of another one, without special tokens.

    Tokenizers write the space between two words into the second one or drop it at the beginning, so
    the text is tokenized with a word behind it that is then taken away.
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


def num_positions(vlm: VLM) -> int | None:
    """How many positions a model has; None if its configuration does not say."""
    return getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None)


def _rows(batch: Batch, at: Bool[Tensor, "batch pos"]) -> list[tuple[list[int], Tensor]]:
    """Per example its tokens without padding, and where `at` holds among them."""
    real = batch.inputs["attention_mask"].bool()
    ids = batch.inputs["input_ids"]
    return [(ids[i, real[i]].tolist(), at[i, real[i]]) for i in range(batch.size)]


def _num_common(rows: Sequence[Sequence[int]]) -> int:
    one, other = rows
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)

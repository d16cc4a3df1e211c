"""One pass for both the teacher-forced and the greedy answers of a batch.

The prompts of both are the same, and so are their keys and values in a causal decoder. Greedy
answers therefore go on where the teacher-forced pass stopped agreeing with the targets: a row whose
most likely tokens are those of the target and then the end needs no further pass, and the others
need one short step per new token. `generate` alone would run the prompts again.

A model is used like this only if it passes a test, once: steps from the cache must give the logits
of the teacher-forced pass. What answers an input in another way than by a causal decoder (prompts
that are rewritten, routed batches) has to use `generate`.
"""

from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrib.errors import is_out_of_memory
from attrib.model.answers import room_for, special_tokens
from attrib.model.batch import Batch, is_of_row
from attrib.model.devices import loaded
from attrib.model.logits import logits_to_keep
from attrib.model.precision import WHOLE_PASS
from attrib.model.probe import FAILURES
from attrib.model.prompt_rewriting import pushed
from attrib.model.wrapped import eager

logger = getLogger("attrib")
VERIFIED = "steps from the cache of a teacher-forced pass"
PROBED = 2  # steps


@dataclass(eq=False)
class ForcedPass:
    """A teacher-forced pass whose keys and values are kept.

    Attributes:
        vlm: The model.
        batch: Prompts with targets, padded on the left.
        logits: At the last positions, from the end of the shortest prompt on; see `answer_logits`.
        cache: The keys and values; each step appends to them.
    """

    vlm: Any
    batch: Batch
    logits: Float[Tensor, "batch kept d_vocab"]
    cache: Any

    @classmethod
    @torch.no_grad()
    def run(cls, vlm: Any, batch: Batch, *, whole: bool = False) -> "ForcedPass":
        """Run the model, in its current state, once; `whole`: with the logits of all positions."""
        out = vlm._run(batch, use_cache=True, **({} if whole else _kept(vlm, batch)))
        return cls(vlm, batch, out.logits, out.past_key_values)

    @torch.no_grad()
    def texts(self, max_new_tokens: int) -> list[str]:
        """The greedy continuation of each prompt, as `vlm.generate` returns it; usable once."""
        vlm, lengths = self.vlm, self._lengths
        room = room_for(vlm.model, self.batch.inputs["attention_mask"] * ~self.batch["target"])
        limit = max_new_tokens if room is None else min(max_new_tokens, room)
        given = special_tokens(vlm.model, vlm.tokenizer)["eos_token_id"]
        ends = set(given if isinstance(given, list | tuple) else [given])
        best = self.logits.argmax(-1).tolist()
        ids = self.batch.inputs["input_ids"].tolist()
        answers: list[list[int]] = []
        agreed = []  # tokens of the target that are the most likely ones
        for row, length in enumerate(lengths):
            said, target = best[row][-length - 1 :], ids[row][len(ids[row]) - length :]
            num = next((j for j in range(length) if said[j] != target[j]), length)
            answers.append(until_end(said[: num + 1], ends)[:limit])
            agreed.append(num)
        steps = _Steps.after(self, agreed)
        while any(_is_open(answer, ends, limit) for answer in answers):
            token = torch.tensor([answer[-1] for answer in answers])
            new = steps(token).argmax(-1).tolist()
            for answer, one in zip(answers, new, strict=True):
                if _is_open(answer, ends, limit):
                    answer.append(one)
        decoded = vlm.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    @property
    def _lengths(self) -> list[int]:
        return self.batch["target"].sum(1).tolist()


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first one that ends a text, and that one."""
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


def _is_open(answer: list[int], ends: set[int], limit: int) -> bool:
    return len(answer) < limit and answer[-1] not in ends


@dataclass(eq=False)
class _Steps:
    """Steps of one token per row, from somewhere in each row's target on.

    All rows take each step, so that a row's numbers do not depend on which others are finished.
    """

    forced: ForcedPass
    mask: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch 1"]

    @classmethod
    def after(cls, forced: ForcedPass, agreed: list[int]) -> "_Steps":
        """The steps after the first `agreed` tokens of each row's target; later ones are hidden."""
        mask = forced.batch.inputs["attention_mask"]
        width, device = mask.shape[1], mask.device
        lengths = torch.tensor(forced._lengths, device=device)
        first = width - lengths + torch.tensor(agreed, device=device)  # column of the first new one
        columns = torch.arange(width, device=device)
        seen = mask * (columns < first[:, None])
        start = seen.sum(1) if forced.vlm._counts_padding else first
        return cls(forced, seen, start[:, None])

    def __call__(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Append a token to each row: the logits of the next one."""
        vlm, forced = self.forced.vlm, self.forced
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        inputs = {
            "input_ids": tokens[:, None].to(self.mask.device),
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "past_key_values": forced.cache,
        }
        with eager(), loaded(vlm.model), pushed(vlm._active, forced.batch):
            out = vlm.model(**inputs, use_cache=True)
        forced.cache, self.positions = out.past_key_values, self.positions + 1
        return out.logits[:, -1]


def _kept(vlm: Any, batch: Batch) -> dict[str, int]:
    return logits_to_keep(vlm.model, vlm.components.decoder, batch)


def answer_logits(vlm: Any, batch: Batch) -> Float[Tensor, "batch kept d_vocab"]:
    """Logits at the last positions: from the end of the shortest prompt on, so all answers' own.

    The other positions are not unembedded, where the model can leave them out: with a vocabulary of
    49,152 tokens and a width of 576 that is a third of a pass.

    Args:
        vlm: The model.
        batch: Prompts with targets, padded on the left.
    """
    if vlm._routes or vlm._rewriters:
        return vlm.logits(batch)
    return vlm._run(batch, **_kept(vlm, batch)).logits


def is_supported(vlm: Any, batch: Batch) -> bool:
    """Whether `ForcedPass` gives what `vlm.logits` and `vlm.generate` give; tested once per model.

    Models in half precision round the two ways so differently that answers with nearly equal logits
    change: there it is never used.

    Args:
        vlm: The model, in no edited state the first time.
        batch: Prompts with targets; the first one is tested on.
    """
    if vlm.dtype not in (torch.float32, torch.float64) or vlm._routes or vlm._rewriters:
        return False
    if batch.alone or not bool(batch.inputs["attention_mask"][:, -1].all()):
        return False
    if VERIFIED not in vlm.verified:
        try:
            vlm.verified[VERIFIED] = _agrees(vlm, batch)
        except (*FAILURES, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            vlm.verified[VERIFIED] = False
        if not vlm.verified[VERIFIED]:
            logger.info("%s: answers are generated from the prompts anew", vlm.name)
    return vlm.verified[VERIFIED]


@torch.no_grad()
def _agrees(vlm: Any, batch: Batch) -> bool:
    """Whether the prompts alone, and steps from the cache, give the teacher-forced logits."""
    forced = ForcedPass.run(vlm, batch)
    kept, (size, width) = forced.logits.shape[1], batch["target"].shape
    if forced.cache is None or not _close(forced.logits, vlm.logits(batch)[:, width - kept :]):
        return False
    ids, logits = (
        batch.inputs["input_ids"],
        nn.functional.pad(forced.logits, (0, 0, width - kept, 0)),
    )
    rows, first = torch.arange(size), batch["target"].int().argmax(1).cpu()
    if not _close(vlm.last_logits(without_target(vlm, batch)), logits[rows, first - 1]):
        return False
    steps = _Steps.after(forced, [0] * batch.size)
    for number in range(min(PROBED, *forced._lengths)):
        new = steps(ids[rows, first + number])
        if not _close(new, logits[rows, first + number]):
            return False
    return True


@torch.no_grad()
def steps_agree(one: ForcedPass, other: ForcedPass) -> bool:
    """Whether two passes over a batch give the same logits, and in a further step, too."""
    token = one.logits[:, -1].argmax(-1)
    steps = [_Steps.after(run, run._lengths)(token) for run in (one, other)]
    return _close(other.logits, one.logits) and _close(*steps)


def without_target(vlm: Any, batch: Batch) -> Batch:
    """Remove the targets from a left-padded batch; equals the prompts encoded by themselves.

    This reuses the processed images.
    """
    real, target = batch.inputs["attention_mask"].bool(), batch.spans["target"]
    width, removed = real.shape[1], target.sum(1, keepdim=True)
    lengths = real.sum(1, keepdim=True) - removed
    columns = torch.arange(width - int(lengths.max()), width, device=real.device)
    kept = columns >= width - lengths
    index = (columns - removed).clamp(min=0)

    def shift(name: str, value: Any) -> Any:
        if not is_of_row(name):
            return value
        fill = vlm.tokenizer.pad_token_id if name == "input_ids" else 0
        return torch.where(kept, value.gather(1, index), fill)

    shifted = {name: shift(name, value) for name, value in batch.inputs.items()}
    return vlm.batch(shifted, batch.alone)


def _close(one: Tensor, other: Tensor) -> bool:
    error = (one - other.to(one)).abs().max()
    return bool(error <= WHOLE_PASS[one.dtype] * other.abs().max())

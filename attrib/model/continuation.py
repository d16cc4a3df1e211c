"""Prompts with tokens of an answer appended, such as those that the model has generated."""

from collections.abc import Sequence
from dataclasses import replace

from attrib.errors import AttribError, RowError
from attrib.model.batch import Batch, token_spans
from attrib.model.encoding import append_target, pad_rows, unpadded_rows
from attrib.model.vlm import VLM


class TokenCollector:
    """A streamer for `vlm.generate(batch, streamer=...)`: the tokens that one prompt is given.

    Attributes:
        tokens: The generated tokens, the end of the text among them.
    """

    def __init__(self):
        self.tokens: list[int] = []
        self._prompt_is_known = False

    def put(self, value) -> None:
        """Take the prompt, then one new token at a time."""
        if self._prompt_is_known:
            self.tokens += value.flatten().tolist()
        self._prompt_is_known = True

    def end(self) -> None:
        """Do nothing: the text is complete."""


def generated_tokens(vlm: VLM, batch: Batch, max_new_tokens: int) -> list[int]:
    """Generate greedily after one prompt; the tokens, without special ones at their end.

    An answer of special tokens alone keeps the first of them.

    Raises:
        AttribError: The batch has several prompts.
    """
    if batch.size != 1:
        raise AttribError(f"{batch.size} prompts: tokens are collected for one at a time")
    collector = TokenCollector()
    vlm.generate(batch, max_new_tokens, streamer=collector)
    tokens, special = collector.tokens, set(vlm.tokenizer.all_special_ids)
    end = len(tokens)
    while end > 1 and tokens[end - 1] in special:
        end -= 1
    return tokens[:end]


def continued(vlm: VLM, batch: Batch, tokens: Sequence[int]) -> Batch:
    """The batch with the same tokens after each prompt, as its span "target".

    Without tokens the batch itself. Spans of the prompt, such as `last`, keep their meaning, so an
    edit acts on the same positions as during generation.
    """
    return _appended(vlm, batch, [list(tokens)] * batch.size, as_target=True) if tokens else batch


def after_answer(vlm: VLM, batch: Batch, number: int) -> Batch:
    """Return the prompts with the first `number` tokens of the model's own greedy answer.

    The tokens belong to the prompt, as in `attrib ... --answer-token`: `last` is the last of them,
    where the model predicts the token of that number, and the others are text.

    Args:
        vlm: The model.
        batch: Prompts without targets.
        number: Number of the answer token that is predicted next, from 0 on.

    Raises:
        RowError: An answer ends before.
    """
    end = end_tokens(vlm)
    for i in range(number + 1):
        tokens = vlm.last_logits(batch).argmax(-1).tolist()
        if end & set(tokens):
            raise RowError(
                f"the model's answer has {i} token{'' if i == 1 else 's'}, none of number {number}",
                field="prompt",
            )
        if i < number:
            batch = _appended(vlm, batch, [[token] for token in tokens], as_target=False)
    return batch


def end_tokens(vlm: VLM) -> set[int]:
    """Ids of the tokens that end a generated text."""
    configured = getattr(getattr(vlm.model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return {i for i in [*ids, vlm.tokenizer.eos_token_id] if i is not None}


def _appended(vlm: VLM, batch: Batch, tokens: Sequence[list[int]], as_target: bool) -> Batch:
    rows = [
        append_target(row, new, vlm._placeholder)
        for row, new in zip(unpadded_rows(batch.inputs), tokens, strict=True)
    ]
    padded = pad_rows(rows, vlm.pad_id, "left")
    device = batch.inputs["input_ids"].device
    inputs = batch.inputs | {name: value.to(device) for name, value in padded.items()}
    lengths = [len(new) for new in tokens] if as_target else None
    return replace(batch, inputs=inputs, spans=token_spans(inputs, *vlm._span_ids, lengths))


def is_rewriting(vlm: VLM) -> bool:
    """Whether batches are rewritten before they run, as edits in the prompt do."""
    return bool(vlm._rewriters)

"""Tokens of answers: those that follow a prompt, the first with content, and generated ones.

Many tokenizers write " 2" as a blank token and "2". The blank token is the same for all answers, so
what an analysis looks at is the token after it.

Generation is greedy, whatever settings a checkpoint holds: its generation config may have beams,
penalties, suppressed tokens or lengths, and its text would then not be what the logits say, so only
its special tokens are used.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig

from attrib.errors import AttribError, describe
from attrib.model.image_placeholder import quiet

logger = logging.getLogger("attrib")


def without_end_space(prompt: str) -> str:
    """The prompt without spaces at its end: they are the first characters of the answer's token."""
    return prompt.rstrip(" ")


def target_ids(tokenizer: Any, prompt: str, target: str, row: int = 0) -> list[int]:
    """Return the tokens of `target` after `prompt`, without end-of-sequence.

    They are the tokens of `prompt + target` beyond those of `prompt`, with a space in between if
    neither has one (`prompts_imgs_target_to_xym` in VisEdit's code). Spaces at the end of the
    prompt belong to the target.

    Raises:
        AttribError: The target is empty, or merges with the end of the prompt.
    """
    if not target.strip():
        raise AttribError(f"target {row} is empty; give the answer as text")
    prompt = without_end_space(prompt)
    if not target.startswith(" "):
        target = f" {target}"
    try:
        before, both = (tokenizer(text)["input_ids"] for text in (prompt, prompt + target))
    except Exception as error:  # tokenizers raise errors of any class
        raise AttribError(
            f"target {row}: {target!r} cannot be tokenized ({describe(error)}); change the answer"
        ) from error
    if both[: len(before)] != before or len(both) == len(before):
        raise AttribError(
            f"target {row}: {target!r} merges with the end of its prompt {prompt[-20:]!r} into one "
            "token; remove white space from the end of the prompt"
        )
    return both[len(before) :]


def split_blank(
    tokenizer: Any, prompt: str, answer: str, row: int = 0
) -> tuple[list[int], list[int]]:
    """Return the blank tokens at the start of `answer` after `prompt`, and its other tokens.

    An empty answer has neither.

    Raises:
        AttribError: All tokens are blank, or the answer merges with the end of the prompt.
    """
    if not answer.strip():
        return [], []
    ids = target_ids(tokenizer, prompt, answer, row)
    content = without_blank(tokenizer, ids)
    if not content:
        raise AttribError(f"target {row}: {answer!r} has no token with content; change the answer")
    return ids[: len(ids) - len(content)], content


def without_blank(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return tokens from the first one on that is more than white space."""
    content = (i for i, token in enumerate(ids) if tokenizer.decode([token]).strip())
    return ids[next(content, len(ids)) :]


def answer_ids(tokenizer: Any, prompt: str, answer: str, row: int = 0) -> list[int]:
    """Return the tokens of `answer` after `prompt` from the first one with content on."""
    if not answer.strip():
        raise AttribError(f"answer {row} is empty; give it as text")
    return split_blank(tokenizer, prompt, answer, row)[1]


def generated_ids(
    model: nn.Module,
    inputs: dict[str, Any],
    tokenizer: Any,
    pad_id: int,
    max_new_tokens: int,
    settings: dict[str, Any],
) -> Int[Tensor, "rows _"]:
    """Return the tokens of Hugging Face's `generate`, greedy but for the caller's settings.

    Args:
        model: The model.
        inputs: Keyword arguments of its forward.
        tokenizer: Its tokenizer.
        pad_id: Token id for padding.
        max_new_tokens: Maximum number of new tokens, unless `settings` limit the length.
        settings: The caller's arguments; a `generation_config` among them replaces the greedy one.

    Raises:
        AttribError: The settings do not fit together, or there is no such setting.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise AttribError(f"max_new_tokens={max_new_tokens!r}: give a whole number of at least 1")
    given = settings.get("generation_config")
    if not isinstance(given, GenerationConfig | None):
        raise AttribError(f"generation_config is a {type(given).__name__}; give a GenerationConfig")
    config = GenerationConfig(do_sample=False) if given is None else copy.deepcopy(given)
    rest: dict[str, Any] = {
        name: value for name, value in settings.items() if name != "generation_config"
    }
    if not (config.max_new_tokens or config.max_length or "max_length" in rest):
        rest = {"max_new_tokens": max_new_tokens} | rest
    run: Any = model  # its classes inherit `generate` from a mixin
    named = ", ".join(["max_new_tokens", *settings])
    try:
        rest = config.update(**rest)
        _stop_at_last_position(config, model, inputs["attention_mask"])
        if config.stop_strings:
            rest = {"tokenizer": tokenizer} | rest
        with quiet(), _only_special_tokens(model, tokenizer, pad_id):
            out = run.generate(**inputs, generation_config=config, **rest)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, AttribError):
            raise
        told = " ".join(str(error).split())
        raise AttribError(f"generate with {named}: {told}") from error
    return out if isinstance(out, Tensor) else out.sequences


def _stop_at_last_position(config: GenerationConfig, model: Any, mask: Tensor) -> None:
    """Lower the number of new tokens to what the decoder has positions for; the log says so."""
    room, width = room_for(model, mask), mask.shape[1]
    if room is None:
        return
    wanted = config.max_new_tokens or (config.max_length or 0) - width
    if wanted <= room:
        return
    if config.max_new_tokens:
        config.max_new_tokens = room
    else:
        config.max_length = width + room
    logger.warning(
        f"generation stops after {room} new tokens, not {wanted}: the decoder has "
        f"{_num_positions(model)} positions, and the longest prompt takes {int(mask.sum(1).max())}"
    )


def room_for(model: Any, mask: Tensor) -> int | None:
    """How many new tokens the decoder has positions for after prompts; None for any number."""
    limit = _num_positions(model)
    # The last token is not read: it needs no position.
    return None if limit is None else max(limit - int(mask.sum(1).max()) + 1, 1)


def _num_positions(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


@contextmanager
def _only_special_tokens(model: nn.Module, tokenizer: Any, pad_id: int) -> Iterator[None]:
    """Reduce every generation config of the model to its special tokens inside the context.

    transformers fills what a caller leaves open from the model's own config; the BLIP family
    generates by its language model, which has one of its own.
    """
    owners = _generating(model)
    before = [owner.generation_config for owner in owners]
    tokens = {"pad_token_id": pad_id, **special_tokens(model, tokenizer)}
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig(**tokens)
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config


def special_tokens(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """The ids of the tokens that begin and end a text, as `generated_ids` has them."""
    owners = _generating(model)
    text = owners[0].config.get_text_config()
    configs = [owner.generation_config for owner in reversed(owners)]
    sources = [config for config in (*configs, text, tokenizer) if config is not None]
    tokens: dict[str, Any] = {}
    for name in ("bos_token_id", "eos_token_id"):
        known = (getattr(source, name, None) for source in sources)
        tokens[name] = next((ids for ids in known if ids is not None), None)
    return tokens


def _generating(model: nn.Module) -> list[Any]:
    """The model, and the parts of it that generate."""
    return [m for m in model.modules() if hasattr(m, "generation_config")]

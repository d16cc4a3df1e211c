"""Tokens of answers: those that follow a prompt, and the first of them that has content.

Many tokenizers write " 2" as a blank token and "2". The blank token is the same for all answers, so
what an analysis looks at is the token after it.
"""

from typing import Any

from attrib.errors import AttribError, describe


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

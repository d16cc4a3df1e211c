"""What generated text must satisfy."""

import torch

from attrib.checks.inputs import NEW_TOKENS, CheckFailed, CheckInputs, Generated, generated
from attrib.model.precision import WHOLE_PASS


def first_generated_token_is_the_argmax(inputs: CheckInputs) -> str:
    """Generation starts with the token whose logit is largest."""
    chosen = inputs.generated.tokens[:, :1]
    if len(chosen) != inputs.batch.size:
        raise CheckFailed(f"{len(chosen)} texts are generated for {inputs.batch.size} prompts")
    logits = inputs.plain[inputs.batch["last"]]
    top = logits.gather(1, chosen.to(logits.device))[:, 0]
    return inputs.compare([(top, logits.amax(1))], "its logit and the largest")


def generation_does_not_depend_on_the_batch(inputs: CheckInputs) -> str:
    """Greedy text is the same alone, in a batch, and with right padding, up to rounding.

    Each token is the likeliest, and while texts agree, so do the logits of the next token. Texts
    may part only where the logits of two tokens tie within the rounding of the dtype.
    """
    right = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side="right")
    padded = {"left": inputs.generated, "right": generated(inputs.vlm, right, writing=False)}
    for texts in (*padded.values(), *inputs.generated_alone):
        chosen = texts.logits.gather(-1, texts.tokens[..., None].to(texts.logits.device))
        if not torch.equal(chosen[..., 0], texts.logits.amax(-1)):
            raise CheckFailed("a generated token is not the likeliest")
    for side, texts in padded.items():
        for row, alone in enumerate(inputs.generated_alone):
            _compare(inputs, texts, row, alone, f"logits padded on the {side} and alone")
    return f"{NEW_TOKENS} tokens, alone and padded on either side"


def _compare(inputs: CheckInputs, texts: Generated, row: int, alone: Generated, what: str) -> None:
    same = (texts.tokens[row] == alone.tokens[0]).long().cumprod(0)
    steps = slice(1 + int(same[:-1].sum()))  # the last one chose the first token that differs
    inputs.compare([(texts.logits[row, steps], alone.logits[0, steps])], what, WHOLE_PASS)


def generation_writes_the_prompt_once(inputs: CheckInputs) -> str:
    """During cached generation, `write` acts on the prompt and on no later position."""
    seen, steps = inputs.generated.written, inputs.generated.tokens.shape[1]
    if seen != [tuple(inputs.hidden[0].shape)]:
        raise CheckFailed(f"a write saw {seen}")
    return f"one write of {seen[0]} in {steps} tokens"

"""What generated text must satisfy."""

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from attrib.checks.inputs import CheckFailed, CheckInputs
from attrib.forward.hooks import write


def first_generated_token_is_the_argmax(inputs: CheckInputs) -> str:
    """Generation starts with the token whose logit is largest."""
    chosen: list[Tensor] = []

    def keep(ids: Tensor, _scores: object, **_: object) -> Tensor:
        chosen.append(ids[:, -1:])
        return torch.ones(len(ids), dtype=torch.bool, device=ids.device)

    inputs.vlm.generate(inputs.batch, 1, stopping_criteria=StoppingCriteriaList([keep]))
    if len(chosen[0]) != inputs.batch.size:
        raise CheckFailed(f"{len(chosen[0])} texts are generated for {inputs.batch.size} prompts")
    logits = inputs.plain[inputs.batch["last"]]
    top = logits.gather(1, chosen[0].to(logits.device))[:, 0]
    return inputs.compare([(top, logits.amax(1))], "its logit and the largest")


def generation_does_not_depend_on_the_batch(inputs: CheckInputs) -> str:
    """Greedy text is the same alone, in a batch, and with right padding."""
    alone = [
        inputs.vlm.generate(inputs.vlm.encode([image], [prompt]), max_new_tokens=4)[0]
        for image, prompt in zip(inputs.images, inputs.prompts, strict=True)
    ]
    for side in ("left", "right"):
        batch = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side=side)
        if (texts := inputs.vlm.generate(batch, max_new_tokens=4)) != alone:
            raise CheckFailed(f"padded on the {side}: {texts}, alone: {alone}")
    return "4 tokens, alone and padded on either side"


def generation_writes_the_prompt_once(inputs: CheckInputs) -> str:
    """During cached generation, `write` acts on the prompt and on no later position."""
    seen = []
    with write(inputs.vlm, 0, lambda h: seen.append(h.shape) or h * 0, inputs.batch["text"]):
        inputs.vlm.generate(inputs.batch, max_new_tokens=4, min_new_tokens=4)
    if seen != [inputs.hidden[0].shape]:
        raise CheckFailed(f"a write saw {[tuple(shape) for shape in seen]}")
    return f"one write of {tuple(seen[0])} in 4 tokens"

"""Inputs on their way into a model, and generated tokens on their way out."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from attrib.model.encoding import pad_rows


def placed(inputs: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs on a device, with images in the model's dtype."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def bos_token_id(model: PreTrainedModel, processor: Any) -> int | None:
    """The id of the beginning-of-sequence token: the tokenizer's, or else the model's."""
    if processor is not None:
        return processor.tokenizer.bos_token_id
    return model.config.get_text_config().bos_token_id


def left_padded(inputs: dict[str, Any], pad_id: int) -> dict[str, Any]:
    """Inputs whose padding on the right, if any, has moved to the left and is one column wider."""
    real = inputs["attention_mask"].bool()
    if real[:, -1].all():
        return inputs
    keys = [key for key in inputs if key == "input_ids" or key.endswith("token_type_ids")]
    rows = [{key: inputs[key][i, mask].tolist() for key in keys} for i, mask in enumerate(real)]
    padded = pad_rows(rows, pad_id, "left", width=real.shape[1] + 1)
    return inputs | {key: value.to(real.device) for key, value in padded.items()}


def new_texts(
    tokenizer: Any, prompts: Int[Tensor, "batch pos"], generated: Int[Tensor, "batch _"]
) -> list[str]:
    """What was generated after each prompt, without special tokens and surrounding space."""
    width = prompts.shape[1]
    if torch.equal(generated[:, :width], prompts):  # not returned where embeddings go in
        generated = generated[:, width:]
    return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]

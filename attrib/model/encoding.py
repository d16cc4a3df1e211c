"""Tokenise prompts with images with any Hugging Face processor, append targets, and pad.

The processor's own padding is removed first, since some processors pad between image and text. Rows
without an image may be mixed with rows that have one.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only

from attrib.errors import AttribError
from attrib.model.answers import split_blank, target_ids, without_end_space
from attrib.model.image_placeholder import ImagePlaceholder, quiet, render
from attrib.model.pictures import Pictures
from attrib.model.row_checks import check_texts, process_rows, render_prompt, tokenize
from attrib.vocabulary import Template

Row = dict[str, list[int]]


def encode_rows(
    processor: Any,
    placeholder: ImagePlaceholder,
    images: Pictures,
    prompts: Sequence[str],
    targets: Sequence[str] | None,
    template: Template,
    answers: Sequence[str] | None = None,
) -> tuple[list[Row], dict[str, Tensor], list[int] | None]:
    """Return token rows, image inputs, and the number of target tokens of each row.

    Args:
        processor: The Hugging Face processor.
        placeholder: How images are marked in its prompts.
        images: Those of each row.
        prompts: One per row.
        targets: One per row, or None.
        template: "raw" or "chat".
        answers: One per row, or None; the blank tokens that they start with end the prompts.

    Raises:
        AttribError: A prompt, target or image cannot be used; the message says which.
    """
    check_texts(placeholder, images, prompts, targets, answers)
    texts = prompt_texts(processor, placeholder, images, prompts, template)
    rows, tensors = prompt_rows(processor, placeholder, images, texts)
    blanks: list[list[int]] = [[] for _ in rows]
    if answers is not None:
        blanks = [
            split_blank(processor.tokenizer, prompt, answer, row)[0]
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        rows = [append_target(row, one, placeholder) for row, one in zip(rows, blanks, strict=True)]
    if targets is None:
        return rows, tensors, None
    pairs = zip(prompts, targets, strict=True)
    ids = [target_ids(processor.tokenizer, *pair, row) for row, pair in enumerate(pairs)]
    for own, blank in zip(ids, blanks, strict=True):
        if own[: len(blank)] == blank:
            del own[: len(blank)]
    rows = [append_target(row, new, placeholder) for row, new in zip(rows, ids, strict=True)]
    return rows, tensors, [len(new) for new in ids]


def prompt_rows(
    processor: Any, placeholder: ImagePlaceholder, images: Pictures, texts: Sequence[str]
) -> tuple[list[Row], dict[str, Tensor]]:
    """Return token rows without padding, and the image inputs.

    Args:
        processor: The Hugging Face processor.
        placeholder: How images are marked in its prompts.
        images: Those of each row.
        texts: One per row, with a marker for each image (`prompt_texts`).

    Returns:
        A dict of lists per row, `input_ids` and the token types; and the processor's other tensors,
        with the images in the order of their rows. Without any image they hold one blank image, for
        models that require pixels, or are empty.
    """
    # A processor that inserts image tokens also adds other text (PaliGemma's newline), so rows
    # without an image are processed with a blank one, whose tokens are removed again.
    shown = {i: own for i, own in enumerate(images) if own or placeholder.auto_inserts}
    rows: dict[int, Row] = {}
    tensors: dict[str, Tensor] = {}
    if shown:
        their_rows, tensors = process_rows(
            partial(_process, processor, placeholder),
            list(shown.values()),
            [texts[i] for i in shown],
            list(shown),
        )
        rows |= zip(shown, their_rows, strict=True)
    for i, own in enumerate(images):
        if not own and i in rows:
            keep = [token != placeholder.image_token_id for token in rows[i]["input_ids"]]
            rows[i] = {key: list(compress(value, keep)) for key, value in rows[i].items()}
        elif not own:
            ids = tokenize(processor.tokenizer, texts[i], i)
            rows[i] = {"input_ids": ids} | {key: [0] * len(ids) for key in placeholder.target_types}
    if placeholder.auto_inserts:
        given = [bool(own) for own in images for _ in own or [None]]
        keep = [i for i, is_given in enumerate(given) if is_given] or [0]
        tensors = {key: value[keep] for key, value in tensors.items()}
    return [rows[i] for i in range(len(texts))], tensors


def _process(
    processor: Any, placeholder: ImagePlaceholder, images: list[list[Image.Image]], texts: list[str]
) -> tuple[list[Row], dict[str, Tensor]]:
    # On the right: the positions of InstructBLIP's Q-Former start at the first column.
    padding = {"padding": True, "padding_side": "right"}
    with quiet():
        out = dict(processor(images=images, text=texts, return_tensors="pt", **padding))
    out.pop("labels", None)  # of PaliGemma; targets are appended later
    real = out.pop("attention_mask").bool()
    keys = [key for key in ("input_ids", *placeholder.target_types) if key in out]
    columns = {key: out.pop(key) for key in keys}
    rows = [{key: columns[key][i, real[i]].tolist() for key in keys} for i in range(len(texts))]
    return rows, out


def prompt_texts(
    processor: Any,
    placeholder: ImagePlaceholder,
    images: Pictures,
    prompts: Sequence[str],
    template: Template,
) -> list[str]:
    """Return the processor's text for each prompt: after image markers, or in the template.

    No text ends with a space: it belongs to the token after it.
    """
    prompts = [without_end_space(prompt) for prompt in prompts]
    if template == "raw":
        pairs = zip(prompts, images, strict=True)
        return [placeholder.marker * len(own) + prompt for prompt, own in pairs]
    if getattr(processor, "chat_template", None) is None:
        raise AttribError(f"{type(processor).__name__} has no chat template; use template='raw'")
    texts = [
        render_prompt(partial(render, processor, prompt, num_images=len(own)), row)
        for row, (prompt, own) in enumerate(zip(prompts, images, strict=True))
    ]
    texts = [without_end_space(text) for text in texts]
    bos = processor.tokenizer.bos_token
    if bos and processor.tokenizer("x")["input_ids"][0] == processor.tokenizer.bos_token_id:
        return [text.removeprefix(bos) for text in texts]  # the tokenizer adds it
    return texts


def append_target(row: Row, target: list[int], placeholder: ImagePlaceholder) -> Row:
    """Return a row with its target appended."""
    types = placeholder.target_types.items()
    longer = {key: row[key] + [target_type] * len(target) for key, target_type in types}
    return {"input_ids": row["input_ids"] + target} | longer


def pad_rows(
    rows: Sequence[Row], pad_id: int, side: str, width: int = 0
) -> dict[str, Int[Tensor, "batch pos"]]:
    """Return rows as tensors of at least `width` columns, padded on one side, with their mask."""
    num_pos = max(width, *(len(row["input_ids"]) for row in rows))

    def pad(values: list[int], fill: int) -> list[int]:
        filling = [fill] * (num_pos - len(values))
        return filling + values if side == "left" else values + filling

    out = {"attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows])}
    for key in rows[0]:
        fill = pad_id if key == "input_ids" else 0
        out[key] = torch.tensor([pad(row[key], fill) for row in rows])
    return out


def positions(mask: Tensor) -> dict[str, Tensor]:
    """The positions of tokens, counted without padding, as `generate` of transformers does."""
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def unpadded_rows(inputs: dict[str, Any]) -> list[Row]:
    """Return the token ids and token types of each row without padding."""
    keys = [key for key in inputs if key == "input_ids" or key.endswith("token_type_ids")]
    real = inputs["attention_mask"].bool()
    return [{key: inputs[key][i, mask].tolist() for key in keys} for i, mask in enumerate(real)]


def pad_left(inputs: dict[str, Any], pad_id: int) -> dict[str, Any]:
    """Move right padding, if any, to the left and add one column of it."""
    real = inputs["attention_mask"].bool()
    if real[:, -1].all():
        return inputs
    padded = pad_rows(unpadded_rows(inputs), pad_id, "left", width=real.shape[1] + 1)
    return inputs | {key: value.to(real.device) for key, value in padded.items()}


def new_texts(
    tokenizer: Any, prompts: Int[Tensor, "batch pos"], generated: Int[Tensor, "rows _"]
) -> list[str]:
    """Decode generated tokens after each prompt, without special tokens and surrounding space."""
    width = prompts.shape[1]
    prompts = prompts.repeat_interleave(len(generated) // len(prompts), 0)  # several per prompt
    if torch.equal(generated[:, :width], prompts):  # models given embeddings return new tokens only
        generated = generated[:, width:]
    return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


def to_device(inputs: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Move inputs to a device, and floating-point inputs to a dtype."""

    def move(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return tree_map_only(Tensor, move, inputs)


def with_pad_token(processor: Any, tokenizer: Any) -> Any:
    """Return the processor, or a copy with a pad token if its tokenizer has none."""
    if tokenizer.pad_token is not None:
        return processor
    padding = copy.copy(processor)
    padding.tokenizer = tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return padding

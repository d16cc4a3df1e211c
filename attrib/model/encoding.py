"""Turn prompts with images into padded rows of tokens, with any Hugging Face processor.

1. Process all rows, and drop the processor's padding: some pad between image and text.
2. Append the targets' tokens.
3. Pad to one side, and note where each modality sits.

A row without an image may stand beside rows with one: it has no visual tokens and brings no pixels.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.image_placeholder import ImageStyle, blank_image, quiet, render

Row = dict[str, list[int]]


def encode_rows(
    processor: Any,
    style: ImageStyle,
    images: Sequence[Image.Image | None],
    prompts: Sequence[str],
    targets: Sequence[str] | None,
    template: Literal["raw", "chat"],
) -> tuple[list[Row], dict[str, Tensor], list[int] | None]:
    """Token rows, the inputs that hold the images, and how many tokens of each row are its target.

    Raises:
        AttribError: A prompt, target or image cannot be used; the message says which.
    """
    for name, given in (("images", images), ("targets", targets)):
        if given is not None and len(given) != len(prompts):
            raise AttribError(f"{len(given)} {name} for {len(prompts)} prompts: give one for each")
    if not prompts:
        raise AttribError("no prompts: give at least one")
    texts = prompt_texts(processor, style, images, prompts, template)
    rows, tensors = prompt_rows(processor, style, images, texts)
    if targets is None:
        return rows, tensors, None
    pairs = zip(prompts, targets, strict=True)
    ids = [target_ids(processor.tokenizer, *pair, row) for row, pair in enumerate(pairs)]
    rows = [append_target(row, new, style) for row, new in zip(rows, ids, strict=True)]
    return rows, tensors, [len(new) for new in ids]


def prompt_rows(
    processor: Any, style: ImageStyle, images: Sequence[Image.Image | None], texts: Sequence[str]
) -> tuple[list[Row], dict[str, Tensor]]:
    """Token rows without padding, and the inputs that hold the images.

    Args:
        processor: The Hugging Face processor.
        style: How it wants images announced.
        images: One per row, or None.
        texts: One per row, with the marker where there is an image (`prompt_texts`).

    Returns:
        One dict per row, of lists as long as the row: `input_ids` and the style's types; and the
        processor's other tensors, which hold the images in the order of their rows. If no row
        has an image, they hold one blank image, for models that cannot do without, or are empty.
    """
    # A processor that inserts tokens itself also decides what else surrounds a prompt (PaliGemma's
    # newline), so it sees rows without an image too, with a blank one that is taken out again.
    seen = [i for i, image in enumerate(images) if image is not None or style.inserts_itself]
    rows: dict[int, Row] = {}
    tensors: dict[str, Tensor] = {}
    if seen:
        pictures = [[_rgb(images[i], i)] for i in seen]
        rows_seen, tensors = _process(processor, style, pictures, [texts[i] for i in seen])
        rows |= zip(seen, rows_seen, strict=True)
    for i, image in enumerate(images):
        if image is None and i in rows:
            keep = [token != style.image_token_id for token in rows[i]["input_ids"]]
            rows[i] = {key: list(compress(value, keep)) for key, value in rows[i].items()}
        elif image is None:
            ids = processor.tokenizer(texts[i])["input_ids"]
            rows[i] = {"input_ids": ids} | {key: [0] * len(ids) for key in style.target_types}
    if style.inserts_itself:
        keep = [i for i, image in enumerate(images) if image is not None] or [0]
        tensors = {key: value[keep] for key, value in tensors.items()}
    return [rows[i] for i in range(len(texts))], tensors


def _process(
    processor: Any, style: ImageStyle, pictures: list[list[Image.Image]], texts: list[str]
) -> tuple[list[Row], dict[str, Tensor]]:
    # On the right, because the positions of InstructBLIP's Q-Former start at the first column.
    padding = {"padding": True, "padding_side": "right"}
    with quiet():
        out = dict(processor(images=pictures, text=texts, return_tensors="pt", **padding))
    out.pop("labels", None)  # PaliGemma's; ours come with the targets
    real = out.pop("attention_mask").bool()
    keys = [key for key in ("input_ids", *style.target_types) if key in out]
    columns = {key: out.pop(key) for key in keys}
    rows = [{key: columns[key][i, real[i]].tolist() for key in keys} for i in range(len(texts))]
    return rows, out


def _rgb(image: Image.Image | None, row: int) -> Image.Image:
    if image is None:
        return blank_image()
    if not isinstance(image, Image.Image):
        raise AttribError(f"image {row} is a {type(image).__name__}; expected a PIL image or None")
    return image if image.mode == "RGB" else image.convert("RGB")


def prompt_texts(
    processor: Any,
    style: ImageStyle,
    images: Sequence[Image.Image | None],
    prompts: Sequence[str],
    template: Literal["raw", "chat"],
) -> list[str]:
    """What the processor is given for each prompt: with an image's marker, or in the template."""
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        if not prompt and image is None:
            raise AttribError(f"prompt {i} is empty, and there is no image: give one of them")
        for reserved in style.reserved:
            if reserved in prompt:
                raise AttribError(
                    f"prompt {i} contains {reserved!r}, which stands for an image; remove it: the "
                    "image's tokens are put in by themselves"
                )
    if template == "raw":
        return [
            prompt if image is None else style.marker + prompt
            for prompt, image in zip(prompts, images, strict=True)
        ]
    if getattr(processor, "chat_template", None) is None:
        raise AttribError(f"{type(processor).__name__} has no chat template; use template='raw'")
    texts = [
        render(processor, prompt, has_image=image is not None)
        for prompt, image in zip(prompts, images, strict=True)
    ]
    bos = processor.tokenizer.bos_token
    if bos and processor.tokenizer("x")["input_ids"][0] == processor.tokenizer.bos_token_id:
        return [text.removeprefix(bos) for text in texts]  # the tokenizer puts it in
    return texts


def target_ids(tokenizer: Any, prompt: str, target: str, row: int = 0) -> list[int]:
    """The tokens of `target` as they follow `prompt`, without end-of-sequence.

    A space is put between the two where neither brings one; the target's tokens are those that
    `prompt + target` has more than `prompt` (VisEdit's `prompts_imgs_target_to_xym`).

    Raises:
        AttribError: The target is empty, or merges with the end of the prompt.
    """
    if not target.strip():
        raise AttribError(f"target {row} is empty; give the answer as text")
    if not prompt.endswith(" ") and not target.startswith(" "):
        target = f" {target}"
    before = tokenizer(prompt)["input_ids"]
    both = tokenizer(prompt + target)["input_ids"]
    if both[: len(before)] != before or len(both) == len(before):
        raise AttribError(
            f"target {row}: {target!r} merges with the end of its prompt {prompt[-20:]!r} into one "
            "token; remove spaces from the end of the prompt"
        )
    return both[len(before) :]


def append_target(row: Row, target: list[int], style: ImageStyle) -> Row:
    """The row followed by its target."""
    types = {key: row[key] + [style.target_types[key]] * len(target) for key in style.target_types}
    return {"input_ids": row["input_ids"] + target} | types


def pad_rows(
    rows: Sequence[Row], pad_id: int, side: str, width: int = 0
) -> dict[str, Int[Tensor, "batch pos"]]:
    """Rows as tensors at least `width` long, padded on one side, with their attention mask."""
    num_pos = max(width, *(len(row["input_ids"]) for row in rows))

    def pad(values: list[int], fill: int) -> list[int]:
        filling = [fill] * (num_pos - len(values))
        return filling + values if side == "left" else values + filling

    out = {"attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows])}
    for key in rows[0]:
        out[key] = torch.tensor(
            [pad(row[key], pad_id if key == "input_ids" else 0) for row in rows]
        )
    return out


def spans_of(
    ids: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"],
    image_token_id: int,
    bos_id: int | None,
    target_lengths: Sequence[int] | None = None,
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Where each modality sits in padded rows of tokens.

    Args:
        ids: Token ids.
        real: Where they are not padding.
        image_token_id: The id that stands for a visual token.
        bos_id: The id of a beginning-of-sequence token, if the model has one.
        target_lengths: How many of each row's last real tokens are its target.
    """
    index = torch.arange(ids.shape[1], device=ids.device)
    end = torch.where(real, index + 1, 0).amax(1, keepdim=True)
    lengths = torch.tensor(target_lengths or [0] * len(ids), device=ids.device)[:, None]
    prompt = real & (index < end - lengths)
    visual = prompt & (ids == image_token_id)
    words = prompt & ~visual
    # Q-Former models put the visual tokens before the beginning-of-sequence token.
    bos = words & (words.cumsum(1) == 1) & (ids == (-1 if bos_id is None else bos_id))
    spans = {"visual": visual, "text": words & ~bos, "last": index == end - lengths - 1}
    if bos.any():
        spans["bos"] = bos
    if target_lengths is not None:
        spans["target"] = real & ~prompt
    return spans


def next_tokens(
    ids: Int[Tensor, "batch pos"], at: Bool[Tensor, "batch pos"]
) -> Int[Tensor, "batch pos"]:
    """Labels: each position's next token where that one is in `at`, elsewhere -100."""
    labels = torch.full_like(ids, -100)
    labels[:, :-1][at[:, 1:]] = ids[at]
    return labels

"""Settings of a processor that must agree with its model: read from the model's config.

A processor inserts one image token per visual feature of the model. Older checkpoints lack the
settings that this count depends on (`patch_size`, `num_query_tokens`, ...), and hand-made ones hold
wrong ones; the model's config and weights have all of them.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import nn

from attrib.errors import AttribError, SetupError
from attrib.model.prompt_rewriting import pushed
from attrib.model.wrapped import eager

logger = logging.getLogger("attrib")

# Vision towers that take images of one size only.
FIXED_SIZE = (
    "blip_2_vision_model",
    "clip_vision_model",
    "instructblip_vision_model",
    "internvl_vision",
    "siglip_vision_model",
)
SIDES = ("shortest_edge", "height", "width")
MISMATCH = ("do not match", "does not match", "doesn't match")


def completed(processor: Any, model: nn.Module) -> Any:
    """Return the processor, or a copy with the settings that its model needs; the log names them.

    Args:
        processor: The Hugging Face processor, or None.
        model: The Hugging Face model.
    """
    config: Any = model.config
    if processor is None or getattr(config, "vision_config", None) is None:
        return processor
    changes = _changes(processor, _processor_settings(processor, model))
    images = getattr(processor, "image_processor", None)
    image_changes = _changes(images, _image_settings(images, config)) if images else {}
    if not (changes or image_changes):
        return processor
    found = ", ".join(
        f"{name} is {_plain(getattr(owner, name))}, read as {value}"
        for owner, given in ((processor, changes), (images, image_changes))
        for name, value in given.items()
    )
    logger.warning(f"{type(processor).__name__}: {found}, from the model's config")
    made = _with(processor, changes)
    if image_changes:
        made.image_processor = _with(images, image_changes)
    if "image_seq_length" in changes and hasattr(made, "full_image_sequence"):  # Gemma 3
        one, many = made.tokenizer.image_token, made.image_seq_length
        start, end = made.boi_token, made.tokenizer.eoi_token
        made.full_image_sequence = f"\n\n{start}{one * many}{end}\n\n"
    return made


@contextmanager
def running(active: list[Any], batch: Any, processor: Any) -> Iterator[None]:
    """Push `batch` to the active ones; a model that refuses its images names the settings.

    Raises:
        AttribError: The model makes another number of visual features than there are image tokens,
            or takes images of another size.
    """
    try:
        with eager(), pushed(active, batch):
            yield
    except ValueError as error:
        told = " ".join(str(error).split())
        if isinstance(error, AttribError) or not any(words in told for words in MISMATCH):
            raise
        raise AttribError(
            f"the model refuses the images of its {type(processor).__name__} ({told}); correct the "
            f"processor's settings: {_listed(processor)}"
        ) from error


def _listed(processor: Any) -> str:
    """The settings that may be at fault, with their values."""
    images = getattr(processor, "image_processor", None)
    names = {
        processor: ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy",
                    "num_query_tokens", "num_image_tokens", "image_seq_len", "image_seq_length"),
        images: ("size", "crop_size", "do_resize", "do_center_crop", "patch_size", "merge_size"),
    }  # fmt: skip
    found = [
        f"{'image_processor.' * (owner is images)}{name}={_plain(getattr(owner, name))}"
        for owner, known in names.items()
        for name in known
        if hasattr(owner, name)
    ]
    return ", ".join(found) or "its preprocessor_config.json"


def _changes(owner: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `owner` has with another value."""
    return {
        name: value
        for name, value in settings.items()
        if value is not None and hasattr(owner, name) and _plain(getattr(owner, name)) != value
    }


def _with(owner: Any, changes: Mapping[str, Any]) -> Any:
    made = copy.copy(owner)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _plain(value: Any) -> Any:
    """A size as a dict without the sides that it leaves open."""
    if isinstance(value, Mapping) or hasattr(value, "longest_edge"):  # transformers' SizeDict
        return {key: side for key, side in dict(value).items() if side is not None}
    return str(value) if hasattr(value, "content") else value


def _processor_settings(processor: Any, model: nn.Module) -> dict[str, Any]:
    """What the attributes of a processor must be; None where the config does not say."""
    config: Any = model.config
    vision = config.vision_config
    patch, side = _first(vision, "patch_size"), _first(vision, "image_size")
    patches = (side // patch) ** 2 if patch and side else None
    takes = signature(type(model).forward).parameters
    settings: dict[str, Any] = {
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
        "num_query_tokens": getattr(config, "num_query_tokens", None),
        "spatial_merge_size": getattr(config, "spatial_merge_size", None),
        "image_seq_length": _image_seq_length(config, patches),
        "return_mm_token_type_ids": "mm_token_type_ids" in takes or None,
    }
    if hasattr(processor, "num_additional_image_tokens"):  # the LLaVA family
        settings["num_additional_image_tokens"] = _num_class_tokens(model)
        settings["patch_size"] = patch
    if hasattr(processor, "image_break_token"):  # Pixtral
        settings["patch_size"] = patch
    if hasattr(processor, "vision_aspect_ratio"):  # LLaVA-OneVision
        settings["num_image_tokens"] = patches
    if patches and (scale := getattr(config, "scale_factor", None)):  # Idefics 3, SmolVLM
        settings["image_seq_len"] = patches // scale**2
    return settings | _token_settings(processor, config)


def _image_settings(images: Any, config: Any) -> dict[str, Any]:
    """What the attributes of an image processor must be; None where the config does not say."""
    vision = config.vision_config
    patch, side = _first(vision, "patch_size"), _first(vision, "image_size")
    patches = (side // patch) ** 2 if patch and side else None
    settings: dict[str, Any] = {
        "image_grid_pinpoints": getattr(config, "image_grid_pinpoints", None),
        "image_seq_length": patches if config.model_type == "paligemma" else None,
    }
    if hasattr(images, "merge_size"):  # Qwen-VL
        settings |= {
            "patch_size": patch,
            "merge_size": getattr(vision, "spatial_merge_size", None),
            "temporal_patch_size": getattr(vision, "temporal_patch_size", None),
        }
    if hasattr(images, "max_image_size") and hasattr(config, "scale_factor"):
        settings["max_image_size"] = {"longest_edge": side}
    if side and getattr(vision, "model_type", "") in FIXED_SIZE:
        settings |= _size_settings(images, side)
    return settings


def _size_settings(images: Any, side: int) -> dict[str, Any]:
    """The settings with which images are squares of `side`; none where they are.

    Raises:
        SetupError: Images keep their shape.
    """
    size = _plain(getattr(images, "size", None))
    keeps = isinstance(size, dict) and list(size) == ["shortest_edge"]
    if keeps and getattr(images, "do_center_crop", None) is False:
        raise SetupError(
            f"{type(images).__name__}: do_center_crop is false, so that images keep their shape, "
            f"and the model takes {side} x {side} pixels only; set do_center_crop to true"
        )
    settings = {}
    if _side(images) != side:
        for name in ("size", "crop_size"):
            size = _plain(getattr(images, name, None))
            if isinstance(size, dict) and set(size) <= set(SIDES):
                settings[name] = dict.fromkeys(size, side)
    return settings


def _side(images: Any) -> int | None:
    """Side of the square images that an image processor makes."""
    crops = getattr(images, "do_center_crop", False) and getattr(images, "crop_size", None)
    size = _plain(images.crop_size if crops else getattr(images, "size", None))
    return next(iter(size.values()), None) if isinstance(size, dict) else None


def _first(config: Any, name: str) -> Any:
    value = getattr(config, name, None)
    return value[0] if isinstance(value, list | tuple) else value


def _image_seq_length(config: Any, patches: int | None) -> int | None:
    """Number of visual tokens of an image, or of one tile."""
    ratio = getattr(config, "downsample_ratio", None)
    if patches and ratio:  # InternVL
        return round(patches * ratio**2)
    if config.model_type == "paligemma":
        return patches
    return getattr(config, "mm_tokens_per_image", None)  # Gemma 3


def _num_class_tokens(model: nn.Module) -> int:
    """Number of positions that a vision tower puts before its patches."""
    names = [name for name, _ in model.named_parameters()]
    classes = any(name.endswith(("class_embedding", "cls_token")) for name in names)
    registers = [w.shape[-2] for name, w in model.named_parameters() if "register_tokens" in name]
    return classes + sum(registers[:1])


def _token_settings(processor: Any, config: Any) -> dict[str, Any]:
    """The image token of the model, for processors whose image token is another one."""
    given, wanted = getattr(processor, "image_token", None), getattr(config, "image_token_id", None)
    tokenizer = getattr(processor, "tokenizer", None)
    # Gemma 3 calls the start of an image by this name.
    if given is None or wanted is None or tokenizer is None or hasattr(processor, "boi_token"):
        return {}
    if tokenizer.convert_tokens_to_ids(str(given)) == wanted:
        return {}
    token = tokenizer.convert_ids_to_tokens(wanted) if wanted < len(tokenizer) else None
    if token is None:
        return {}
    if hasattr(given, "content"):
        like = copy.copy(given)
        like.content = token
        return {"image_token": like}
    return {"image_token": token, "image_token_id": wanted}

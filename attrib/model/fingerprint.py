"""A fingerprint of the weights in use, whatever file they are from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from attrib.model.adapters import adapters_of
from attrib.model.devices import loaded
from attrib.model.vlm import VLM
from attrib.model.wrapped import plain_parts

SAMPLED = 256  # elements of each weight in the fingerprint


def fingerprint(vlm: VLM) -> str:
    """SHA-256 of the model's config and of evenly spaced elements of each weight.

    Distinguishes models that share a name or a folder, edited ones too, at a cost independent of
    their size. It depends neither on the device nor on whether the model was saved before.
    """
    digest = hashlib.sha256(_settings(vlm).encode())
    if adapters := adapters_of(vlm.model):  # the same weights with another adapter active
        digest.update(json.dumps(adapters, sort_keys=True).encode())
    for name, tensor in vlm.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # extra state of some layers
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(_sample(tensor))
            continue
        with loaded(holder := vlm.model.get_submodule(name.rpartition(".")[0])):
            tensor = getattr(holder, name.rpartition(".")[2])
            digest.update(b"" if tensor.is_meta else _sample(tensor))
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    """Evenly spaced elements, also of the parts of a quantised tensor."""
    parts = [part.detach().flatten() for part in plain_parts(tensor)]
    some = [part[:: max(1, part.numel() // SAMPLED)].cpu().contiguous() for part in parts]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in some)


def _settings(vlm: VLM) -> str:
    """The model's config as text, without its path and the version that read it.

    The class and the dtype are those in use: loading and saving write them into the config.
    """
    dtype = str(vlm.dtype).removeprefix("torch.")

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            kept |= {"dtype": dtype} if "dtype" in kept else {}
            how = value.get("quantization_config")  # torchao's holds names that start with "_"
            kept |= {} if how is None else {"quantization_config": how}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    config = {**vlm.model.config.to_dict(), "architectures": [type(vlm.model).__name__]}
    return json.dumps(plain(config), sort_keys=True, default=str)


def template_record(vlm: VLM) -> dict[str, str]:
    """How a model is given prompts, for records; nothing for prompts as they are."""
    return {} if vlm.template == "raw" else {"template": vlm.template}

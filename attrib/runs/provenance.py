"""Provenance: model, data, options and versions that numbers were computed with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attrib.data import EditData
from attrib.environment import versions, weights_digest
from attrib.model.devices import loaded
from attrib.model.vlm import VLM
from attrib.model.wrapped import adapters_of, stored

if TYPE_CHECKING:
    from attrib.runs.collect import Collected

SAMPLED = 256  # elements of each weight in the fingerprint


def provenance_of(
    vlm: VLM,
    data: EditData,
    options: Mapping[str, Any],
    seed: int,
    done: "Collected | None" = None,
) -> dict[str, Any]:
    """Everything needed to compute the same numbers again, as JSON can hold it.

    Args:
        vlm: the model.
        data: the dataset.
        options: everything else that changes the numbers.
        seed: of noise and of the intervals that are computed from the tables.
        done: what was collected; adds the counts of used samples and quarantined rows.
    """
    config, folder = vlm.model.config, Path(vlm.model.name_or_path or "none")
    made = {
        "model": {
            "name": vlm.name,
            "class": type(vlm.model).__name__,
            "layers": vlm.num_layers,
            "dtype": str(vlm.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "commit": getattr(config, "_commit_hash", None),
            "weights_sha256": weights_digest(folder) if folder.is_dir() else None,
            "fingerprint": fingerprint(vlm),
        },
        "data": {"name": data.name, "split": data.split, **data.provenance},
        "options": dict(options),
        "seed": seed,
        "versions": versions(),
    }
    if done is None:
        return made
    quarantined = len(data.quarantined) + len(done.quarantined)
    return {**made, "examples": len(done.used), "quarantined": quarantined}


def fingerprint(vlm: VLM) -> str:
    """SHA-256 of the model's config and of evenly spaced elements of each weight.

    Distinguishes models that share a name or a folder, edited ones too, at a cost independent of
    their size. It does not depend on the device.
    """
    digest = hashlib.sha256(_settings(vlm.model.config.to_dict()).encode())
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
    parts = [part.detach().flatten() for part in stored(tensor)]
    some = [part[:: max(1, part.numel() // SAMPLED)].cpu().contiguous() for part in parts]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in some)


def _settings(config: Mapping[str, Any]) -> str:
    """A model config as text, without its path and the version that read it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            how = value.get("quantization_config")  # torchao's holds names that start with "_"
            kept |= {} if how is None else {"quantization_config": how}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    return json.dumps(plain(config), sort_keys=True, default=str)

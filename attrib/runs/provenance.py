"""Provenance: model, data, options and versions that numbers were computed with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attrib.data import EditData
from attrib.files import versions, weights_digest
from attrib.model.devices import loaded
from attrib.model.vlm import VLM

if TYPE_CHECKING:
    from attrib.runs.collected import Collected

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
    for name, tensor in vlm.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # extra state of some layers
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        with loaded(holder := vlm.model.get_submodule(name.rpartition(".")[0])):
            tensor = getattr(holder, name.rpartition(".")[2]) if tensor.is_meta else tensor
            if tensor.is_meta:
                continue
            some = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)].cpu().contiguous()
            digest.update(some.detach().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(config: Mapping[str, Any]) -> str:
    """A model config as text, without its path and the version that read it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    return json.dumps(plain(config), sort_keys=True, default=str)

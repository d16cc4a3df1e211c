"""What numbers are made of: model, data, options and versions, as JSON can hold it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attrib.data import EditData
from attrib.environment import versions, weights_digest
from attrib.model.vlm import VLM

if TYPE_CHECKING:
    from attrib.runs.collecting import Collected

SAMPLED = 256  # elements of a weight that its fingerprint looks at


def described(vlm: VLM, data: EditData, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything needed to compute the same numbers again, known before the first of them."""
    config, folder = vlm.model.config, Path(vlm.model.name_or_path or "none")
    return {
        "model": {
            "name": vlm.name,
            "class": type(vlm.model).__name__,
            "layers": vlm.num_layers,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
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


def provenance(
    vlm: VLM, data: EditData, done: "Collected", options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """`described`, with how many samples the numbers rest on and how many rows were set aside."""
    counts = {
        "examples": len(done.used),
        "quarantined": len(data.quarantined) + len(done.quarantined),
    }
    return {**described(vlm, data, options, seed), **counts}


def fingerprint(vlm: VLM) -> str:
    """SHA-256 of the model's settings and of evenly spaced elements of each of its weights.

    It tells models apart that share a name or a folder, edited ones too, at a cost that does not
    grow with their size; the same weights have the same on every device.
    """
    digest = hashlib.sha256(_settings(vlm.model.config.to_dict()).encode())
    for name, tensor in vlm.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # state that some layers keep beside weights
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            some = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(config: Mapping[str, Any]) -> str:
    """A configuration as text, without where it was read and by which version."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    return json.dumps(plain(config), sort_keys=True, default=str)

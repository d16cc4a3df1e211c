"""Gates that are fitted once into a folder, with a record of what they were fitted to.

Commands that share a folder, and the processes of one command, then use the same gate, and one that
asks for another gate is refused.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import locked, read_json, write_text
from attrib.model.fingerprint import fingerprint, template_record
from attrib.model.vlm import VLM
from attrib.runs.manifest import diff
from editors.gating.gates import CONFIG, save_gate
from editors.gating.training import fit_gate

logger = logging.getLogger("attrib")
ORIGIN = "origin.json"  # beside the gate; gates of earlier versions have none
SAMPLES = "samples"

Samples = Sequence[EditSample] | Callable[[], Sequence[EditSample]]


def fit_once(
    folder: Path,
    name: str,
    vlm: VLM,
    samples: Samples,
    layer: int,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Fit a gate into a folder, unless it is there; other processes wait for the one that fits.

    Args:
        folder: Where the gate is kept.
        name: One of `editors.gating.gates.GATES` but "none".
        vlm: The model.
        samples: Training edits, or a function that reads them, which is called only to fit.
        layer: The layer that the gate reads.
        seed: Seed of a learned gate.
        source: Where the edits are from (JSON), if they are not read for a gate that is there.
        settings: As of `fit_gate`.

    Raises:
        AttribError: The folder holds a gate that was fitted otherwise.
    """
    origin = origin_of(name, vlm, samples, layer, seed=seed, source=source, **settings)
    if not is_fitted(folder):
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not is_fitted(folder):  # by another process meanwhile
                _fit(folder, name, vlm, samples, layer, seed, origin, settings)
    require_origin(folder, origin)


def origin_of(
    name: str,
    vlm: VLM,
    samples: Samples,
    layer: int,
    *,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a gate is fitted to (JSON), without the edits if they are a function; see `fit_once`."""
    return {
        "gate": name,
        "model": fingerprint(vlm),
        **template_record(vlm),
        "layer": layer,
        "seed": seed,
        "settings": {k: _plain(value) for k, value in settings.items()},
        "source": dict(source or {}),
        **({} if callable(samples) else {SAMPLES: _edits_digest(samples)}),
    }


def require_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Refuse a folder whose gate was fitted otherwise; one without a record is taken as it is.

    Raises:
        AttribError: The gate was fitted otherwise.
    """
    if not is_fitted(folder) or not (folder / ORIGIN).exists():
        return
    there = read_json(folder / ORIGIN)
    if SAMPLES not in origin:
        there.pop(SAMPLES, None)
    if different := diff(there, origin):
        raise AttribError(
            f"{folder} holds a gate that was fitted otherwise: {'; '.join(different)}; choose "
            "another folder (--out), or remove this one to fit the gate anew"
        )


def is_fitted(folder: Path) -> bool:
    """Whether a folder holds a whole gate: its configuration is written last."""
    return (folder / CONFIG).exists()


def _edits_digest(samples: Sequence[EditSample]) -> str:
    """SHA-256 of the ids, prompts and targets of edits, in their order."""
    rows = [(one.id, one.request.prompt, one.request.target) for one in samples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _fit(
    folder: Path,
    name: str,
    vlm: VLM,
    samples: Samples,
    layer: int,
    seed: int,
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    samples = samples() if callable(samples) else samples
    edits = f"{len(samples)} training edits"
    logger.info("gate: %s at layer %d, fitted to %s, into %s", name, layer, edits, folder)
    with torch.enable_grad():
        gate = fit_gate(name, vlm, samples, layer, seed, **settings)
    assert gate is not None
    # Before the gate: none is there without its record.
    record = {**origin, SAMPLES: _edits_digest(samples)}
    write_text(folder / ORIGIN, json.dumps(record, indent=1))
    save_gate(folder, gate)


def _plain(value: Any) -> Any:
    """A setting as JSON."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

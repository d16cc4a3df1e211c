"""Edits as files: one safetensors file, with its kind and model as JSON in the metadata.

Edits other than weights and neurons need their editor; the file stores a digest of the editor's
tensors, and loading with another editor is refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import SetupError
from attrib.model.vlm import VLM
from attrib.runs.provenance import fingerprint
from editors.adapters.edit_signal import EditSignal
from editors.adapters.sites import MemoryEntry
from editors.base import Edit, WeightEdit
from editors.io.tensors import digest_of, save_tensors
from editors.weights.neurons import NeuronEdit, neuron_edit

RECORD = "edit"  # metadata key of the JSON


def save_edit(edit: Edit, path: str | Path, vlm: VLM, editor: Any = None) -> Path:
    """Write an edit of `vlm` to a safetensors file, with the digest of `editor` if it needs it.

    Raises:
        SetupError: Edits of this kind cannot be saved, or not without their editor.
    """
    record: dict[str, Any] = {
        "model": {"name": vlm.name, "fingerprint": fingerprint(vlm)},
        "kind": type(edit).__name__,
    }
    tensors: dict[str, Tensor] = {}
    if isinstance(edit, WeightEdit):
        tensors = dict(edit.weights)
    elif isinstance(edit, NeuronEdit):
        tensors, record["layer"] = edit.neurons.tensors, edit.layer
    elif editor is not None and (memories := getattr(edit, "memories", None)) is not None:
        tensors = _of_memories(memories)
        record |= _of_editor(editor, [memory.request for memory in memories])
    elif editor is not None and (facts := getattr(edit, "facts", None)) is not None:
        record |= _of_editor(editor, facts)
    else:
        raise SetupError(f"an edit of the kind {type(edit).__name__} cannot be saved")
    save_tensors(Path(path), tensors, {RECORD: json.dumps(record)})
    return Path(path)


def load_edit(path: str | Path, vlm: VLM, editor: Any = None) -> Edit:
    """Load an edit.

    Args:
        path: The file.
        vlm: The model that was edited.
        editor: The editor that made it; needed unless the edit consists of weights or neurons.

    Raises:
        SetupError: The file is not an edit, or it is of another model or another editor.
    """
    record, tensors = _read(Path(path))
    if record["model"]["fingerprint"] != fingerprint(vlm):
        raise SetupError(
            f"{path} is an edit of {record['model']['name']}, whose weights are not those of "
            f"{vlm.name}; load that model, or make the edit again"
        )
    tensors = {name: value.to(vlm.device) for name, value in tensors.items()}
    if record["kind"] == "WeightEdit":
        return WeightEdit(tensors)
    if record["kind"] == "NeuronEdit":
        return neuron_edit(record["layer"], tensors)
    learned = getattr(editor, "tensors", None)  # editors of weights have none
    if learned is None or record["editor"] != digest_of(learned):
        raise SetupError(f"{path} was made with another editor; load the one it was made with")
    requests = [EditRequest(None, about["prompt"], about["target"]) for about in record["edits"]]
    if record["kind"] in ("HiddenEdit", "SERACEdit", "SeracEdit"):
        memories = [_memory(i, request, tensors) for i, request in enumerate(requests)]
        return editor.from_memories(memories)
    edits = [editor.edit(vlm, request) for request in requests]  # prompts, made of text alone
    return edits[0] if len(edits) == 1 else editor.merge(edits)


def _of_editor(editor: Any, requests: Sequence[EditRequest]) -> dict[str, Any]:
    edits = [{"prompt": request.prompt, "target": request.target} for request in requests]
    return {"editor": digest_of(editor.tensors), "edits": edits}


def _of_memories(memories: Sequence[MemoryEntry]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for i, memory in enumerate(memories):
        tensors |= {f"{i}/signal/{k}": s.states for k, s in memory.signals.items()}
        tensors |= {f"{i}/last/{k}": s.last for k, s in memory.signals.items()}
        tensors |= {f"{i}/gate/{k}": v for k, v in memory.gate.items()}
    return tensors


def _memory(number: int, request: EditRequest, tensors: Mapping[str, Tensor]) -> MemoryEntry:
    def part(kind: str) -> dict[str, Tensor]:
        start = f"{number}/{kind}/"
        return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

    last = part("last")
    signals = {key: EditSignal(states, last[key]) for key, states in part("signal").items()}
    return MemoryEntry(request, signals, part("gate"))


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise SetupError(f"{path}: no such file") from error
    except Exception as error:  # safetensors' own error class is not public
        raise SetupError(f"{path} is not a saved edit ({error})") from error

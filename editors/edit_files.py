"""An edit as files: safetensors for what is kept of it, JSON for what it is and of which model.

A hidden edit needs its editor's adapters to be served; the files name them by their digest, and are
refused with others.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import CannotStart
from attrib.provenance import fingerprint
from attrib.vlm import VLM
from editors.edit import Edit, HiddenEdit, WeightEdit
from editors.patcher_neurons import NeuronEdit, neuron_edit
from editors.signals import Signal
from editors.sites import Memory
from editors.tensors import digest_of, save_tensors

if TYPE_CHECKING:
    from editors.hidden_editor import HiddenEditor

RECORD = "edit"  # key of the JSON in the file's metadata


def save_edit(edit: Edit, path: str | Path, vlm: VLM, editor: "HiddenEditor | None" = None) -> Path:
    """Write an edit of `vlm` to one safetensors file; a hidden edit with the digest of `editor`.

    Raises:
        CannotStart: The edit is of a kind that no file is made of.
    """
    record: dict[str, object] = {
        "model": {"name": vlm.name, "fingerprint": fingerprint(vlm)},
        "kind": type(edit).__name__,
    }
    if isinstance(edit, WeightEdit):
        tensors = dict(edit.weights)
    elif isinstance(edit, NeuronEdit):
        tensors, record["layer"] = edit.neurons.tensors, edit.layer
    elif isinstance(edit, HiddenEdit) and editor is not None:
        tensors = {}
        for i, memory in enumerate(edit.memories):
            tensors |= {f"{i}/signal/{k}": s.states for k, s in memory.signals.items()}
            tensors |= {f"{i}/last/{k}": s.last for k, s in memory.signals.items()}
            tensors |= {f"{i}/gate/{k}": v for k, v in memory.gate.items()}
        record["adapters"] = digest_of(editor.module.state_dict())
        record["edits"] = [
            {"prompt": m.request.prompt, "target": m.request.target} for m in edit.memories
        ]
    else:
        raise CannotStart(f"an edit of the kind {type(edit).__name__} cannot be saved")
    save_tensors(Path(path), tensors, {RECORD: json.dumps(record)})
    return Path(path)


def load_edit(path: str | Path, vlm: VLM, editor: "HiddenEditor | None" = None) -> Edit:
    """The edit in a file.

    Raises:
        CannotStart: It is no edit, or one of another model or of other adapters.
    """
    record, tensors = _read(Path(path))
    if record["model"]["fingerprint"] != fingerprint(vlm):
        raise CannotStart(
            f"{path} is an edit of {record['model']['name']}, whose weights are not those of "
            f"{vlm.name}; load that model, or make the edit anew"
        )
    if record["kind"] == "WeightEdit":
        return WeightEdit({name: value.to(vlm.device) for name, value in tensors.items()})
    if record["kind"] == "NeuronEdit":
        on_device = {name: value.to(vlm.device) for name, value in tensors.items()}
        return neuron_edit(record["layer"], on_device)
    module = getattr(editor, "module", None)  # editors of other kinds have no adapters
    if editor is None or module is None or record["adapters"] != digest_of(module.state_dict()):
        raise CannotStart(f"{path} was made with other adapters; load the editor it was made with")
    memories = [_memory(i, about, tensors, vlm) for i, about in enumerate(record["edits"])]
    return HiddenEdit(editor.sites, memories, editor.gate)


def _memory(number: int, about: dict, tensors: dict[str, Tensor], vlm: VLM) -> Memory:
    def part(kind: str) -> dict[str, Tensor]:
        start = f"{number}/{kind}/"
        return {
            name.removeprefix(start): value.to(vlm.device)
            for name, value in tensors.items()
            if name.startswith(start)
        }

    request = EditRequest(None, about["prompt"], about["target"])
    last = part("last")
    signals = {key: Signal(states, last[key]) for key, states in part("signal").items()}
    return Memory(request, signals, part("gate"))


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CannotStart(f"{path}: there is no such file") from error
    except Exception as error:  # safetensors' own error class is not public
        raise CannotStart(f"{path}: not an edit that was saved here ({error})") from error

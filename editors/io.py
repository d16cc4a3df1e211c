"""Tensors, editors, edits and checkpoints as files.

An edit is one safetensors file, with its kind and model as JSON in the metadata. Edits other than
weights and neurons need their editor; the file stores a digest of the editor's tensors, and loading
with another editor is refused.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from attrib.data.samples import EditRequest
from attrib.errors import SetupError, describe
from attrib.files import atomic_write, read_json, sha256, versions, write_text
from attrib.model.fingerprint import fingerprint, template_record
from attrib.model.vlm import VLM
from editors.adapters.sites import memories_from, tensors_of
from editors.base import Edit, WeightEdit
from editors.weights.low_rank import LowRankEdit
from editors.weights.neurons import NeuronEdit, neuron_edit

SETTINGS = "editor.json"
RECORD = "edit"  # metadata key of the JSON
TRAINING = "training.json"  # a checkpoint's record


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically."""
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(kept, metadata))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _model_record(vlm: VLM) -> dict[str, str]:
    dtype = str(vlm.dtype).removeprefix("torch.")
    made = {"name": vlm.name, "dtype": dtype, "fingerprint": fingerprint(vlm)}
    return {**made, **template_record(vlm)}


def name_of(template: str) -> str:
    """What a template makes of prompts, in words."""
    return "prompts as they are" if template == "raw" else f"prompts in the {template} template"


def _refuse_other_model(made: Mapping[str, str], vlm: VLM, what: str, again: str) -> None:
    here, template = _model_record(vlm), made.get("template", "raw")
    if made["fingerprint"] == here["fingerprint"]:
        if template == vlm.template:
            return
        raise SetupError(
            f"{what} {name_of(template)}, and {vlm.name} is given {name_of(vlm.template)}; give "
            f"--template {template}, or {again}"
        )
    name, dtype = made["name"], made.get("dtype", here["dtype"])  # old files do not name it
    if dtype != here["dtype"]:
        raise SetupError(
            f"{what} {name} in {dtype}, and {vlm.name} is loaded in {here['dtype']}; load it with "
            f"dtype {dtype}, or {again}"
        )
    raise SetupError(
        f"{what} {name}, whose weights are not those of {vlm.name}; load that model, or {again}"
    )


def write_record(path: Path, name: str, vlm: VLM, about: Mapping[str, Any]) -> None:
    """Write the editor's name, its model and `about` (JSON) into the folder `path`."""
    model = _model_record(vlm)
    record = {"editor": name, "model": model, **about, "versions": versions()}
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / SETTINGS, json.dumps(record, indent=1))


def read_record(path: Path, name: str, vlm: VLM) -> dict[str, Any]:
    """Return the record that `write_record` wrote for the editor `name` and `vlm`.

    Raises:
        SetupError: There is no record, or it is of another editor or model.
    """
    if not (path / SETTINGS).exists():
        raise SetupError(f"{path} holds no editor: there is no {SETTINGS} in it")
    record = read_json(path / SETTINGS)
    if record["editor"] != name:
        raise SetupError(f"{path} holds the editor {record['editor']!r}, not {name!r}")
    what = f"{path} was trained for"
    _refuse_other_model(record["model"], vlm, what, "train the editor for this one")
    return record


def files_digest(folders: Sequence[Path]) -> str:
    """Return the SHA-256 of the settings and tensors in the folders of an editor and its gate."""
    files = [
        file
        for folder in folders
        for file in (folder / SETTINGS, folder / "gate.json", *sorted(folder.glob("*.safetensors")))
        if file.exists()
    ]
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def save_edit(edit: Edit, path: str | Path, vlm: VLM, editor: Any = None) -> Path:
    """Write an edit of `vlm` to a safetensors file, with the digest of `editor` if it needs it.

    Raises:
        SetupError: Edits of this kind cannot be saved, or not without their editor.
    """
    record: dict[str, Any] = {"model": _model_record(vlm), "kind": type(edit).__name__}
    tensors: dict[str, Tensor] = {}
    if isinstance(edit, WeightEdit):
        tensors = dict(edit.weights)
    elif isinstance(edit, LowRankEdit):
        tensors = edit.tensors
    elif isinstance(edit, NeuronEdit):
        tensors, record["layer"] = edit.neurons.tensors, edit.layer
    elif editor is not None and (memories := getattr(edit, "memories", None)) is not None:
        tensors = tensors_of(memories)
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
    _refuse_other_model(record["model"], vlm, f"{path} is an edit of", "make the edit again")
    tensors = {name: value.to(vlm.device) for name, value in tensors.items()}
    if record["kind"] == "WeightEdit":
        return WeightEdit(tensors)
    if record["kind"] == "LowRankEdit":
        return LowRankEdit.from_tensors(tensors)
    if record["kind"] == "NeuronEdit":
        return neuron_edit(record["layer"], tensors)
    learned = getattr(editor, "tensors", None)  # editors of weights have none
    if learned is None or record["editor"] != digest_of(learned):
        raise SetupError(f"{path} was made with another editor; load the one it was made with")
    requests = [EditRequest(None, about["prompt"], about["target"]) for about in record["edits"]]
    if record["kind"] in ("HiddenEdit", "SERACEdit", "SeracEdit"):
        return editor.from_memories(memories_from(requests, tensors))
    edits = [editor.edit(vlm, request) for request in requests]  # prompts, made of text alone
    return edits[0] if len(edits) == 1 else editor.merge(edits)


def _of_editor(editor: Any, requests: Sequence[EditRequest]) -> dict[str, Any]:
    edits = [{"prompt": request.prompt, "target": request.target} for request in requests]
    return {"editor": digest_of(editor.tensors), "edits": edits}


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise SetupError(f"{path}: no such file") from error
    except Exception as error:  # safetensors' own error class is not public
        raise SetupError(f"{path} is not a saved edit ({error})") from error


def save_checkpoint(
    path: Path, module: nn.Module, optimizers: Sequence[Optimizer], record: dict[str, Any]
) -> None:
    """Write a checkpoint atomically, and its record once more beside it, for readers."""
    weights = {f"weights.{k}": v for k, v in module.state_dict().items()}
    moments = {
        f"moments.{which}.{i}.{name}": value
        for which, optimizer in enumerate(optimizers)
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    text = json.dumps(record, indent=1)
    # In one file: neither weights nor record can be there without the other.
    save_tensors(path, weights | moments, {TRAINING: text})
    write_text(path.with_name(TRAINING), text)


def read_checkpoint_record(path: Path, best: Path) -> dict[str, Any]:
    """The record of a checkpoint.

    Args:
        path: The checkpoint.
        best: The best weights so far, which its training needs at the end.

    Raises:
        SetupError: One of the files is missing or damaged.
    """
    for file in (best, path):
        try:
            with safe_open(file, "pt") as opened:
                record = (opened.metadata() or {}).get(TRAINING)
        except (OSError, SafetensorError) as error:
            raise SetupError(
                f"{file} is missing or damaged ({describe(error)}); delete {path} to train again "
                "from the beginning"
            ) from error
    return json.loads(record or "{}")


def load_checkpoint(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Load the weights of a module and the states of its optimizers."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k: v for k, v in tensors.items() if k.startswith("weights.")}
    module.load_state_dict({k.removeprefix("weights."): v for k, v in weights.items()})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        if name.startswith("moments."):
            _, which, index, key = name.split(".")
            states[int(which)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

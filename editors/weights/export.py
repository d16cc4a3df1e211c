"""Edited models as plain transformers folders, where an edit consists of weights."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from attrib.errors import AttribError, SetupError, describe
from attrib.files import versions, write_text
from attrib.model.devices import wide
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from editors.base import SequentialEdit, WeightEdit
from editors.weights.low_rank import LowRankEdit
from editors.weights.neurons import NeuronEdit

RECORD = "attrib_edit.json"


def edited_weights(vlm: VLM, edit: Any) -> dict[str, Tensor]:
    """The values that an edit gives to parameters of a model; of edits in sequence the last ones.

    Low-rank updates are added to the weights in float32; they are rounded once, when they are put
    into the model.

    Raises:
        AttribError: The edit is none of weights, with what to ship instead, or of another model.
    """
    parts = list(_parts(edit))
    if others := [part for part in parts if not isinstance(part, WeightEdit | LowRankEdit)]:
        raise AttribError(_instead(others[0]))
    with edit.applied(vlm):
        pass  # an edit of another model is refused
    found: dict[str, Tensor] = {}
    for part in parts:
        if isinstance(part, WeightEdit):
            found |= part.weights
        for name, update in part.updates.items() if isinstance(part, LowRankEdit) else ():
            value = found[name] if name in found else vlm.model.get_parameter(name).detach()
            found[name] = wide(value) + update.dense[0].to(value.device)
    return found


def _parts(edit: Any) -> Iterator[Any]:
    for part in edit.edits if isinstance(edit, SequentialEdit) else ():
        yield from _parts(part)
    if not isinstance(edit, SequentialEdit):
        yield edit


def _instead(edit: Any) -> str:
    """Why an edit cannot be exported, and what to ship instead."""
    kind = type(edit).__name__
    if isinstance(edit, NeuronEdit):
        return (
            f"{kind}: the edit adds neurons to layer {edit.layer}, for which the model's config "
            "has no place; ship the saved edit (`attrib edit --save`), which needs no editor"
        )
    return (
        f"{kind}: the edit acts through its editor and leaves the model's weights as they are; "
        "ship the editor's folder and the saved edit (`attrib edit --save`), with `attrib push` "
        "for example. Editors of weights are ft-l, ft-v, mend and ke"
    )


def export_model(vlm: VLM, edit: Any, folder: str | Path) -> Path:
    """Write a model with an edit in its weights, and its processor, for plain transformers.

    The folder is that of `save_pretrained`, with safetensors, and a record of the edit. The model
    stays what it is.

    Args:
        vlm: The model.
        edit: An edit of its weights.
        folder: A new or empty folder.

    Raises:
        AttribError: The edit is none of weights.
        SetupError: The folder exists and is not empty, or cannot be written; or parts of the model
            are offloaded.
    """
    folder = Path(folder)
    require_new(folder)
    if any(weight.is_meta for weight in vlm.model.parameters()):
        # Their stored values, which are saved, are not those that an edit changes.
        raise SetupError(
            f"{vlm.name}: parts of the model are offloaded, so its edited weights cannot be saved; "
            "load it as a whole (without --device-map, with --device cpu)"
        )
    weights = edited_weights(vlm, edit)
    base = {"name": vlm.name, "fingerprint": fingerprint(vlm)}
    place = folder.resolve()  # the current folder has a name, too
    beside = place if place.exists() else place.parent
    unfinished = beside / f".{place.name}-{uuid4().hex[:8]}.tmp"
    try:
        with WeightEdit(weights).applied(vlm):
            _save(vlm, unfinished)
        record = {"base": base, "parameters": sorted(weights), "versions": versions()}
        write_text(unfinished / RECORD, json.dumps(record, indent=1))
        if place.exists():  # it stays the folder that it is: a shell may be in it
            for file in sorted(unfinished.iterdir()):
                file.rename(place / file.name)
        else:
            unfinished.rename(place)
    except OSError as error:
        raise SetupError(f"{folder} cannot be written: {describe(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def require_new(folder: Path) -> None:
    """Refuse a folder with something in it.

    Raises:
        SetupError: It exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} exists already; give a new folder")


def _save(vlm: VLM, folder: Path) -> None:
    """Save model and processor; `save_pretrained` writes into the model's config, which is kept."""
    before: Mapping[str, Any] = dict(vars(vlm.model.config))
    try:
        vlm.model.save_pretrained(folder)
        if vlm.processor is not None:
            vlm.processor.save_pretrained(folder)
    finally:
        vars(vlm.model.config).clear()
        vars(vlm.model.config).update(before)

"""The gate of a command: fitted to training edits by name, or loaded from a folder."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from attrib.cli.outputs import log
from attrib.errors import AttribError
from attrib.pipeline.options import NAMED_SPLITS, SourceOptions
from attrib.pipeline.source import reading
from attrib.vocabulary import GateName

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from editors.adapters.sites import Gate

NO_GATE = "none"


def gate_of(given: str, vlm: "VLM", options: Any, out: Path) -> "tuple[Gate | None, list[Path]]":
    """The gate that an option names, and the folders whose files identify it.

    A gate given by name is fitted once, to the edits that training reads, and kept beside `out`;
    with the gate there, these edits are not read again.

    Args:
        given: "none", the name of a gate, its folder, or the folder of an editor with a gate.
        vlm: The model.
        options: Those of `attrib evaluate`.
        out: The folder beside which a fitted gate is kept.

    Raises:
        AttribError: Neither a name nor a folder; or the gate beside `out` was fitted otherwise.
    """
    from editors.gating.fitted import fit_once, is_fitted
    from editors.gating.gates import load_gate

    if given == NO_GATE:
        return None, []
    if is_gate_name(given):
        folder = out.with_name(f"{out.name}-gate-{given}")  # beside the run
        if options.dry_run and not is_fitted(folder):
            log(f"gate: {given} would be fitted to training edits; the plan is without it")
            return None, []
        if not is_fitted(folder):
            require_layer(options.gate_layer, vlm)
        edits = partial(training_edits, options)
        fit_once(folder, given, vlm, edits, options.gate_layer, source=_source(options))
        return load_gate(folder), [folder]
    folder = Path(given)
    if not folder.is_dir():
        known = ", ".join(get_args(GateName))
        raise AttribError(f"--gate {given}: no such folder, and none of {known}")
    folder = folder / "gate" if (folder / "gate").is_dir() else folder  # of an editor
    return load_gate(folder), [folder]


def is_gate_name(given: str | None) -> bool:
    """Whether a gate is given by name, and so fitted to training edits."""
    return given != NO_GATE and given in get_args(GateName)


def require_layer(layer: int, vlm: "VLM") -> None:
    """Refuse a layer of `--gate-layer` that the model does not have."""
    if not 0 <= layer < vlm.num_layers:
        raise AttribError(f"--gate-layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")


def training_edits(options: Any) -> "EditData":
    """The training edits that belong to the data of an evaluation."""
    from attrib import data
    from attrib.cli.train import PICTURES

    where: Any = {**reading(options), "limit": options.gate_limit, "need": PICTURES}
    more: Any = {"style": options.style, "disjoint": options.disjoint}
    return data.load(options.data, _training_split(options), **where, **more)


def _source(options: Any) -> dict[str, Any]:
    """What says which edits `training_edits` reads, as JSON."""
    named = {"data", "gate_limit", "style", "disjoint", *SourceOptions.model_fields}
    return {**options.model_dump(mode="json", include=named), "split": _training_split(options)}


def _training_split(options: Any) -> str:
    """The split of the training edits that belong to that of an evaluation."""
    from attrib.data.tables import is_table

    table = is_table(options.data, options.split)
    if table and options.split is None:
        raise AttribError(
            f"--gate {options.gate} is fitted to training edits: give --split, and rows of "
            f"{options.data} whose column split says train; or the folder of a gate"
        )
    if table or options.data in NAMED_SPLITS:
        return "train"
    return f"{str(options.split).rpartition('-')[0]}-train"

"""A grid of short trainings over layers and pairs of layers: what the choice of layers is worth.

It reproduces DualEdit's Fig. 5 and Tables 1 and 3 and VisEdit's Table 2 on a model, and evaluates
layer selection (`attrib.selection.regret`). All cells train on the same edits for the same number
of steps; inputs are run through the unedited model once for all of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import read_json, write_text
from attrib.model.fingerprint import fingerprint, template_record
from attrib.model.vlm import VLM
from editors.adapters.sites import check_layers
from editors.evaluation.layer_grid_gate import GridGate, Opened
from editors.evaluation.layer_grid_inputs import GridEdits, GridInputs, validated_on_test
from editors.evaluation.layer_grid_scores import CELL, HELD_OUT, cell_scores, cell_table
from editors.gating.gates import NO_GATE, check_gate
from editors.methods.adapter_editor import AdapterEditor
from editors.methods.adapter_objective import AdapterConfig
from editors.training.run import alone_in
from editors.training.trainer import Trainer

# In identities; earlier versions recorded the option and trained without the token.
WITH_END_TOKEN = "trained_with_end_token"


@dataclass(frozen=True)
class Cell:
    """The layers of one training; None for no adapter of that modality."""

    text: int | None
    visual: int | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        text, visual = ("no" if i is None else i for i in (self.text, self.visual))
        return f"text-{text} visual-{visual} seed-{self.seed}"

    @property
    def layers(self) -> dict[str, list[int]]:
        """Layers by modality, as editors take them."""
        given = {"text": self.text, "visual": self.visual}
        return {modality: [layer] for modality, layer in given.items() if layer is not None}

    @property
    def all_layers(self) -> list[int]:
        """Layers of both modalities."""
        return sorted({layer for some in self.layers.values() for layer in some})


def cells(
    text: Sequence[int],
    visual: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    seeds: Sequence[int],
) -> list[Cell]:
    """Return the cells of text layers, visual layers and pairs (text, visual), seed by seed."""
    places = [(t, None) for t in text] + [(None, v) for v in visual] + list(pairs)
    return [Cell(t, v, seed) for seed in seeds for t, v in places]


def grid(
    editor: type[AdapterEditor],
    vlm: VLM,
    samples: Sequence[EditSample],
    test: Sequence[EditSample],
    wanted: Sequence[Cell],
    out: str | Path,
    config: AdapterConfig,
    log: Callable[[str], None],
    gate: str = NO_GATE,
    gate_layer: int = 0,
    inputs: GridInputs | None = None,
) -> pd.DataFrame:
    """Train and score cells; finished ones are read from the folder.

    Args:
        editor: The editor's class.
        vlm: The model.
        samples: Edits to train on; those that the model cannot read are set aside by name. The
            last 5 % (at most 100) are held out and select each cell's weights, as in `attrib
            train`; in a folder with cells of an earlier version the first 48 of `test` do.
        test: Edits to score on; the same.
        wanted: The cells.
        out: Folder of the cells.
        config: Options of the adapters and of their training; the seed is the cell's.
        log: Receives the lines of each training, and one per cell.
        gate: One of `editors.gating.gates.GATES`, fitted once to `samples` for all cells; cells are
            scored with it and without a gate.
        gate_layer: The layer that it reads.
        inputs: The cached inputs of these edits and layers, to share them between grids.

    Returns:
        One row per cell, gate and metric: text, visual (NaN for none), seed, gate, metric, value
        (0 to 1, mean over test edits, teacher-forced token accuracy), and "avg" of the five.

    Raises:
        AttribError: There are no cells, or the folder holds cells of other data, model or settings.
        SetupError: Another process trains in the folder.
    """
    if not wanted:
        raise AttribError("grid: no cells; give layers")
    for cell in wanted:
        check_layers(vlm, cell.layers)
    if inputs is None:
        earlier = validated_on_test(Path(out)) and not config.end_token  # else they are refused
        edits = GridEdits.of(vlm, samples, test, config.end_token, earlier)
    else:
        edits = inputs.edits
    identity = _identity(editor, vlm, edits, config)
    folders = [Path(out) / cell.name for cell in wanted]
    check_gate(gate)
    behind = GridGate(gate, gate_layer, Path(out))
    behind.check(vlm, edits.samples)
    missing = [c for c, f in zip(wanted, folders, strict=True) if not _is_done(f, identity, gate)]
    with alone_in(Path(out)) if missing else nullcontext():
        gates = {}
        if missing and gate != NO_GATE:
            gates = {gate: behind.open_inputs(vlm, edits.samples, edits.test)}
        layers = sorted({layer for cell in missing for layer in cell.all_layers})
        for done, cell in enumerate(missing):
            inputs = inputs or GridInputs.of(vlm, edits, layers)
            folder = Path(out) / cell.name
            say = partial(_say, log, cell.name)
            record = _score(cell, editor, vlm, config, inputs, gates, folder, identity, say)
            avg = record["scores"][gate]["avg"]
            log(f"cell {done + 1} of {len(missing)}: {cell.name}: avg {avg:.3f}")
    return cell_table([read_json(folder / CELL) for folder in folders])


def _say(log: Callable[[str], None], cell: str, line: str) -> None:
    log(f"{cell}: {line}")


def _score(
    cell: Cell,
    editor: type[AdapterEditor],
    vlm: VLM,
    config: AdapterConfig,
    inputs: GridInputs,
    gates: Mapping[str, Opened],
    out: Path,
    identity: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train one cell, unless it is trained, and write its scores beside those that are there."""
    config, held_out = config.changed(seed=cell.seed), inputs.held_out
    sites = config.build(vlm, cell.layers, cell.seed)
    objective = editor.objective(vlm, config, sites, inputs.data, held_out, inputs.samples)
    state = Trainer(objective, config, out, identity, say).train()
    known = read_json(out / CELL)["scores"] if (out / CELL).exists() else {}  # of other gates
    scores = {**known, **cell_scores(objective, inputs.test, gates)}
    about = {"identity": identity, "cell": asdict(cell)}
    record = {**about, "scores": scores, "seconds": state.seconds}
    write_text(out / CELL, json.dumps(record, indent=1))
    return record


def _identity(
    editor: type[AdapterEditor],
    vlm: VLM,
    edits: GridEdits,
    config: AdapterConfig,
) -> dict[str, Any]:
    about = {
        "editor": editor.name,
        "model": fingerprint(vlm),
        **template_record(vlm),
        "training": {k: v for k, v in config.training_options.items() if k != "seed"},
        "adapters": config.model_dump(exclude_unset=True, include=set(config.settings())),
        "weights": config.loss_options,
        "samples": [s.id for s in edits.samples],
        "test": [s.id for s in edits.test],
        **({} if edits.validates_on_test else {HELD_OUT: len(edits.held_out)}),
        **({WITH_END_TOKEN: True} if edits.end_token else {}),
    }
    return json.loads(json.dumps(about))


def _is_done(folder: Path, identity: dict[str, Any], gate: str) -> bool:
    path = folder / CELL
    if not path.exists():
        return False
    record = read_json(path)
    there = record["identity"]
    if there["training"].get("end_token") and WITH_END_TOKEN not in there:
        raise AttribError(
            f"{folder} was trained by an earlier version, without the end token that its settings "
            "name; choose another --out"
        )
    if there != identity:
        raise AttribError(
            f"{folder} was trained with other settings, data or model; choose another --out"
        )
    return gate in record["scores"]

"""One short training per layer, or pair of layers: what the choice of layers is worth.

Gives DualEdit's Fig. 5 and Tables 1 and 3 and VisEdit's Table 2 on a model, and judges layer
selection (`attrib.selection.regret`). All cells see the same edits for the same number of steps;
inputs pass the unedited model once for all of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import write_text
from attrib.model.vlm import VLM
from attrib.runs.provenance import fingerprint
from editors.adapters.sites import check_layers
from editors.evaluation.grid_inputs import GridInputs
from editors.evaluation.layer_grid_scores import Opened, Scores, cell_scores, opened
from editors.gating.gates import NO_GATE, check_gate, load_gate, save_gate
from editors.gating.training import fit_gate
from editors.methods.adapter_editor import AdapterEditor
from editors.training.config import Preset
from editors.training.trainer import Run

CELL = "cell.json"
WATCHED = 48  # edits that a training is validated on
GATE_LAYER = 0  # that the gate of all cells reads: none of them writes before it


@dataclass(frozen=True)
class Cell:
    """Layers to train at; None for no adapter of that modality."""

    text: int | None
    visual: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"text-{_or_no(self.text)} visual-{_or_no(self.visual)} seed-{self.seed}"

    @property
    def layers(self) -> dict[str, list[int]]:
        """By modality, as editors take them."""
        given = {"text": self.text, "visual": self.visual}
        return {modality: [layer] for modality, layer in given.items() if layer is not None}

    @property
    def all_layers(self) -> list[int]:
        """Whatever is written there."""
        return sorted({layer for some in self.layers.values() for layer in some})


def cells(
    text: Sequence[int],
    visual: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    seeds: Sequence[int],
) -> list[Cell]:
    """Single text layers, single visual layers and pairs (text, visual), seed by seed."""
    places = [(t, None) for t in text] + [(None, v) for v in visual] + list(pairs)
    return [Cell(t, v, seed) for seed in seeds for t, v in places]


def grid(
    editor: type[AdapterEditor],
    vlm: VLM,
    samples: Sequence[EditSample],
    test: Sequence[EditSample],
    wanted: Sequence[Cell],
    out: str | Path,
    preset: Preset,
    log: Callable[[str], None],
    gate: str = NO_GATE,
    inputs: GridInputs | None = None,
) -> pd.DataFrame:
    """Train and score the wanted cells; what the folder holds already is read.

    Args:
        editor: Which one.
        vlm: The model.
        samples: Edits to train on.
        test: Edits to score on.
        wanted: The cells.
        out: Folder of the cells.
        preset: How adapters are made and trained; its seed is the cell's.
        log: Receives one line per cell.
        gate: One of `editors.gating.gates.GATES`, fitted once to `samples` for all cells; cells are
            scored behind it, and without one as well.
        inputs: What `GridInputs.of` made of these edits and layers, to share it between grids.

    Returns:
        One row per cell, gate and metric: text, visual (NaN for none), seed, gate, metric, value
        (0 to 1, mean over test edits, teacher-forced token accuracy), and "avg" of the five.

    Raises:
        AttribError: No cells, or the folder holds cells of other data, model or settings.
    """
    if not wanted:
        raise AttribError("grid: no cells; give layers")
    for cell in wanted:
        check_layers(vlm, cell.layers)
    preset = preset.changed(
        **{k: v for k, v in editor.defaults.items() if k not in preset.adapters}
    )
    identity = _identity(editor, vlm, samples, test, preset)
    folders = [Path(out) / cell.name for cell in wanted]
    check_gate(gate)
    missing = [c for c, f in zip(wanted, folders, strict=True) if not _is_done(f, identity, gate)]
    if missing:
        gates = {} if gate == NO_GATE else {gate: _opened(vlm, samples, test, gate, Path(out))}
        layers = sorted({layer for cell in missing for layer in cell.all_layers})
        inputs = inputs or GridInputs.of(vlm, samples, test, layers)
        bench = _Bench(editor, vlm, preset, inputs, gates)
        for done, cell in enumerate(missing):
            record = bench.score(cell, Path(out) / cell.name, identity)
            avg = record["scores"][gate]["avg"]
            log(f"cell {done + 1} of {len(missing)}: {cell.name}: avg {avg:.3f}")
    records = [json.loads((folder / CELL).read_text()) for folder in folders]
    return _frame(wanted, [record["scores"] for record in records])


@dataclass(frozen=True, eq=False)
class _Bench:
    """Where cells are trained and scored."""

    editor: type[AdapterEditor]
    vlm: VLM
    preset: Preset
    inputs: GridInputs
    gates: Mapping[str, Opened]

    def score(self, cell: Cell, out: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Train one cell, if it is not trained yet, and write its scores."""
        preset = self.preset.changed(seed=cell.seed)
        adapters = preset.adapters_at(cell.layers)
        sites = adapters.build(self.vlm, cell.seed)
        few, _ = self.inputs.test.split(WATCHED)
        objective = self.editor.objective(
            self.vlm, adapters, sites, preset.weights, self.inputs.data, few, self.inputs.samples
        )
        progress = Run(objective, preset.training, out, identity, lambda _line: None).train()
        scores = cell_scores(objective, self.inputs.test, self.gates)
        record = {
            "identity": identity,
            "cell": asdict(cell),
            "scores": scores,
            "seconds": progress.seconds,
        }
        write_text(out / CELL, json.dumps(record, indent=1))
        return record


def _opened(
    vlm: VLM,
    samples: Sequence[EditSample],
    test: Sequence[EditSample],
    name: str,
    out: Path,
) -> Opened:
    """What the gate of a name opens for; it is fitted once, and kept in the folder of the cells.

    Raises:
        AttribError: The folder holds a gate of another model or of other edits.
    """
    folder, made_of = out / f"gate-{name}", out / f"gate-{name}.json"
    origin = {"model": fingerprint(vlm), "samples": [sample.id for sample in samples]}
    if not made_of.exists():
        with torch.enable_grad():
            gate = fit_gate(name, vlm, samples, GATE_LAYER)
        assert gate is not None
        save_gate(folder, gate)
        write_text(made_of, json.dumps(origin, indent=1))
    elif json.loads(made_of.read_text()) != json.loads(json.dumps(origin)):
        raise AttribError(f"{folder} is of another model or of other edits; choose another --out")
    return opened(vlm, test, load_gate(folder))


def _frame(wanted: Sequence[Cell], scores: Sequence[Scores]) -> pd.DataFrame:
    return pd.DataFrame(
        {**asdict(cell), "gate": gate, "metric": name, "value": value}
        for cell, by_gate in zip(wanted, scores, strict=True)
        for gate, found in by_gate.items()
        for name, value in found.items()
    )


def _identity(
    editor: type[AdapterEditor],
    vlm: VLM,
    samples: Sequence[EditSample],
    test: Sequence[EditSample],
    preset: Preset,
) -> dict[str, Any]:
    about = {
        "editor": editor.name,
        "model": fingerprint(vlm),
        "training": {k: v for k, v in asdict(preset.training).items() if k != "seed"},
        "adapters": dict(preset.adapters),
        "weights": asdict(preset.weights),
        "samples": [s.id for s in samples],
        "test": [s.id for s in test],
    }
    return json.loads(json.dumps(about))


def _is_done(folder: Path, identity: dict[str, Any], gate: str) -> bool:
    path = folder / CELL
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    if record["identity"] != identity:
        raise AttribError(
            f"{folder} was trained with other settings, data or model; choose another --out"
        )
    return gate in record["scores"]


def _or_no(layer: int | None) -> str:
    return "no" if layer is None else str(layer)

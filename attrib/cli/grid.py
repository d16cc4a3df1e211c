"""`attrib grid`: short trainings over layers, which show what the choice of layers is worth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrib.cli.command import ExitCode, invocation, next_command
from attrib.cli.gates import require_layer
from attrib.cli.outputs import log, print_files
from attrib.cli.train import PICTURES, TrainOptions, default_out, editor_options, training_data
from attrib.errors import AttribError
from attrib.files import write_text
from attrib.pipeline.options import option
from attrib.pipeline.source import data_flags, load_model, reading
from attrib.vocabulary import GateName

if TYPE_CHECKING:
    from attrib.model.vlm import VLM
    from editors.evaluation.layer_grid import Cell
    from editors.methods.adapter_editor import AdapterEditor

PANEL = "Cells"


class GridOptions(TrainOptions):
    """Options of `attrib grid`: those of `attrib train` but for the layers and the seed."""

    refused: ClassVar[Mapping[str, str]] = {
        "layers": "grid trains at each layer; give --text, --visual or --pairs",
        "seed": "grid trains with several seeds; give their number as --seeds",
        "tensorboard": "grid writes no curves; train one cell with `attrib train`",
    }

    text: str = option("all", "Single text layers: all, none, or such as 0,2,4.", panel=PANEL)
    visual: str = option("all", "Single visual layers: all, none, or such as 0,2,4.", panel=PANEL)
    pairs: str = option(
        "none",
        "Pairs of text and visual layers: none, or such as 0,2x1,3 for four of them; 1x1+5x6 "
        "for two.",
        panel=PANEL,
    )
    seeds: int = option(3, "Trainings per cell.", panel=PANEL, ge=1)
    gate: GateName | None = option(
        "learned",
        "Gate behind which cells are scored, the same for all cells. Cells are scored without a "
        "gate, too.",
        panel=PANEL,
    )
    gate_layer: int = option(
        0,
        "Layer of the unedited model that the gate reads; in deep models a later one knows "
        "rephrases better.",
        panel=PANEL,
        ge=0,
    )
    out: Path | None = option(
        None,
        "Folder of the scores and figures; the same command resumes there.",
        shown="runs/grid-EDITOR-MODEL-DATA",
    )
    test_split: str = option("validation", "Part to score cells on.", panel="Data")
    test_limit: int = option(300, "Edits to score each cell on.", panel="Data", ge=1)


def grid(options: GridOptions) -> int:
    """Train short adapters at every layer and score them alike (DualEdit Fig. 5, Table 1).

    The last 5 % of the training edits (at most 100) are held out; they select each cell's weights.
    """
    from attrib import data
    from editors.evaluation import layer_grid
    from editors.evaluation import layer_grid_scores as scores
    from editors.evaluation.left_out import left_out

    editor = _editor(options.editor)
    out = options.out or default_out("grid", options)
    vlm = load_model(options)
    require_layer(options.gate_layer, vlm)
    wanted = _cells(options, editor, vlm)
    samples = training_data(options)
    changes = {name: value for name, value in editor_options(options).items() if name != "seed"}
    config: Any = editor.config_class.from_preset(vlm, options.preset, samples, **changes)
    where: Any = {**reading(options), "limit": options.test_limit, "need": PICTURES}
    test = data.load(options.data, options.test_split, **where)
    if line := left_out(test):
        raise AttribError(f"grid compares layers by the mean of the papers' five scores: {line}")
    steps, gate = config.steps, options.gate or "none"
    if options.dry_run:
        from attrib.cli.plans import grid_plan

        print("\n".join(grid_plan(wanted, (samples, test), (steps, gate), vlm, out)))
        return ExitCode.DONE
    log(f"grid: {len(wanted)} trainings of {editor.name}, {steps} steps on {vlm.name}, in {out}")
    layer_grid.grid(editor, vlm, samples, test, wanted, out, config, log, gate, options.gate_layer)
    # Cells of earlier commands in the folder stay in its tables.
    cells = scores.finished_cells(out, out / wanted[0].name)
    frame = scores.cell_table(cells)
    print(scores.grid_text(frame))
    about = {"command": invocation(), **scores.conditions(cells[0])}
    files = [write_text(out / "grid.json", json.dumps(about, indent=1) + "\n")]
    files += scores.save_grid(frame, gate, out)
    print_files(files)
    more = data_flags(options, options.test_split)
    print(f"next: {next_command('select', options, *more, '--against', str(files[-1]))}")
    return ExitCode.DONE


def _editor(name: str) -> "type[AdapterEditor]":
    from editors import EDITORS
    from editors.methods.adapter_editor import AdapterEditor

    found = EDITORS.get(name)
    if found is None or not issubclass(found, AdapterEditor):
        known = [n for n, editor in EDITORS.items() if issubclass(editor, AdapterEditor)]
        raise AttribError(
            f"--editor: no {name!r} that writes at layers; there are {', '.join(known)}"
        )
    return found


def _cells(options: GridOptions, editor: "type[AdapterEditor]", vlm: "VLM") -> "list[Cell]":
    """The cells of the options; an editor of one modality has no cells of the other."""
    from editors.evaluation.layer_grid import cells

    given = {"text": options.text, "visual": options.visual}
    for modality, layers in given.items():
        if modality not in editor.modalities and layers not in ("all", "none"):
            raise AttribError(f"--{modality}: {editor.name} has no {modality} adapter")
    text, visual = (
        layers_in(layers, vlm.num_layers - 1, f"--{m}") if m in editor.modalities else []
        for m, layers in given.items()
    )
    pairs = pairs_in(options.pairs)
    if pairs and len(editor.modalities) < 2:
        raise AttribError(f"--pairs: {editor.name} has adapters of one modality")
    return cells(text, visual, pairs, range(options.seeds))


def layers_in(given: str, num: int, option: str) -> list[int]:
    """Parse layers: all (the last one writes too late to have an effect), none, or a list."""
    if given in ("all", "none"):
        return list(range(num)) if given == "all" else []
    try:
        return [int(n) for n in given.split(",")]
    except ValueError:
        raise AttribError(
            f"{option}: {given!r} is neither all nor none nor layers such as 0,2,4"
        ) from None


def pairs_in(given: str) -> list[tuple[int, int]]:
    """Parse pairs: none, or text layers x visual layers, several products joined by +."""
    if given == "none":
        return []
    products = [part.split("x") for part in given.split("+")]
    if any(len(parts) != 2 for parts in products):
        raise AttribError(f"--pairs: {given!r} is neither none nor such as 0,2x1,3 or 1x1+5x6")
    sides = [[layers_in(side, 0, "--pairs") for side in parts] for parts in products]
    return list(dict.fromkeys((t, v) for text, visual in sides for t in text for v in visual))

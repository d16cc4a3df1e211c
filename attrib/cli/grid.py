"""`attrib grid`: short trainings over layers, which show what the choice of layers is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field
from typer import Option

from attrib.cli.command import ExitCode, add_command
from attrib.cli.models import load_model
from attrib.cli.outputs import log
from attrib.cli.train import PICTURES, TrainOptions, changes_of, training_data
from attrib.errors import AttribError

if TYPE_CHECKING:
    import pandas as pd

    from attrib.model.vlm import VLM
    from editors.evaluation.layer_grid import Cell
    from editors.methods.adapter_editor import AdapterEditor

WHERE = "Cells"


class GridOptions(TrainOptions):
    """Options of `attrib grid`; `--layers` of `attrib train` is not one of them."""

    text: Annotated[
        str, Option(help="Text layers alone: all, none, or such as 0,2,4.", rich_help_panel=WHERE)
    ] = "all"
    visual: Annotated[
        str, Option(help="Visual layers alone, in the same way.", rich_help_panel=WHERE)
    ] = "all"
    pairs: Annotated[
        str,
        Option(help="Pairs of text and visual layer: none, or such as 0,2x1,3 for four of them; "
                    "1x1+5x6 for two.",
               rich_help_panel=WHERE),
    ] = "none"  # fmt: skip
    seeds: Annotated[
        int, Option(help="Trainings per cell.", min=1, rich_help_panel=WHERE), Field(ge=1)
    ] = 3
    gate: Annotated[
        Literal["none", "prompt_last", "sequence_last", "learned"] | None,
        Option(help="What decides which inputs an edit serves when a cell is scored; one gate for "
               "all cells, which reads layer 0. Scores without a gate are given as well.",
               rich_help_panel=WHERE),
    ] = "learned"  # fmt: skip
    test_split: Annotated[
        str, Option(help="Part that cells are scored on.", rich_help_panel="Data")
    ] = "validation"
    test_limit: Annotated[
        int, Option(help="Edits that each cell is scored on.", min=1, rich_help_panel="Data"),
        Field(ge=1),
    ] = 300  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "grid", GridOptions, grid)


def grid(options: GridOptions) -> int:
    """Train short adapters at every layer and score them (DualEdit, Fig. 5, Table 1)."""
    from attrib import data as edit_data
    from attrib.files import write_text
    from editors.evaluation.layer_grid import grid as run
    from editors.training.config import preset_for

    editor = _editor(options.editor)
    name = f"grid-{options.editor}-{Path(options.model).name}-{options.data}"
    out = options.out or Path("runs") / name
    vlm = load_model(options)
    wanted = _cells(options, editor, vlm)
    named = {name: value for name, value in changes_of(options).items() if name != "seed"}
    samples = training_data(options)
    preset = preset_for(vlm, options.preset, samples, **named)
    test = edit_data.load(
        options.data,
        options.test_split,
        image_root=options.image_root,
        limit=options.test_limit,
        need=PICTURES,
    )
    steps = preset.training.steps
    log(f"grid: {len(wanted)} trainings of {editor.name}, {steps} steps on {vlm.name}, in {out}")
    gate = options.gate or "none"
    frame = run(editor, vlm, samples, test, wanted, out, preset, log, gate)
    print(_table(frame))
    print(f"  {write_text(out / 'grid.csv', frame.to_csv(index=False))}")
    judged = (frame["metric"] == "avg") & (frame["gate"] == gate)
    scores = frame.loc[judged, ["text", "visual", "seed", "value"]]
    names = ["text", "visual", "seed", "score"]  # what selection is judged against
    path = write_text(out / "scores.csv", scores.to_csv(index=False, header=names))
    print(f"  {path}\nnext: attrib select --model {options.model} --against {path}")
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
    """The cells that are asked for; an editor of one modality has those of that alone."""
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
    """Layers as they are written: all (the last one writes too late to be read), none, or some."""
    if given in ("all", "none"):
        return list(range(num)) if given == "all" else []
    try:
        return [int(n) for n in given.split(",")]
    except ValueError:
        raise AttribError(
            f"{option}: {given!r} is neither all nor none nor layers such as 0,2,4"
        ) from None


def pairs_in(given: str) -> list[tuple[int, int]]:
    """Pairs as they are written: none, or text layers x visual layers, several with + between."""
    if given == "none":
        return []
    products = [part.split("x") for part in given.split("+")]
    if any(len(parts) != 2 for parts in products):
        raise AttribError(f"--pairs: {given!r} is neither none nor such as 0,2x1,3 or 1x1+5x6")
    sides = [[layers_in(side, 0, "--pairs") for side in parts] for parts in products]
    return list(dict.fromkeys((t, v) for text, visual in sides for t in text for v in visual))


def _table(frame: "pd.DataFrame") -> str:
    """Mean over seeds per cell and gate, a column per metric, in per cent."""
    shown: Any = frame.assign(
        text=frame["text"].astype(object).where(frame["text"].notna(), "-"),
        visual=frame["visual"].astype(object).where(frame["visual"].notna(), "-"),
    )
    table = shown.pivot_table("value", ["gate", "text", "visual"], "metric", "mean", sort=False)
    return (100 * table).round(1).to_string()

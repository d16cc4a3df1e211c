"""`attrib gate`: how well the likeness to an edit tells what the edit must cover from the rest."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field
from typer import Option

from attrib.cli.analyse import analyse
from attrib.cli.command import add_command
from attrib.cli.options import PANEL, AnalysisOptions
from attrib.cli.outputs import results_folder
from attrib.errors import AttribError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.results import Result


class GateOptions(AnalysisOptions):
    """Options of `attrib gate`."""

    free = AnalysisOptions.free | {"token", "layer"}

    token: Annotated[
        Literal["visual_mean", "text_mean", "prompt_last", "target_last"],
        Option(help="The state that the figures and the sentence are about; target_last reads the "
               "gold answer (DualEdit's program does).", rich_help_panel=PANEL),
    ] = "prompt_last"  # fmt: skip
    layer: Annotated[
        int | None,
        Option(help="The layer they are about.", show_default="where the AUC is highest", min=0,
               rich_help_panel=PANEL),
        Field(ge=0),
    ] = None  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "gate", GateOptions, gate)


def gate(options: GateOptions) -> int:
    """Whether a gate could tell an edit from the rest, layer by layer (DualEdit, Fig. 4)."""
    if options.prompt is not None:
        raise AttribError("gate compares edits with the inputs they are judged by: give --data")

    from attrib.analyses.gate_roc import separation
    from attrib.analyses.tables import measure_gate
    from attrib.files import write_text
    from attrib.report.gate_summary import gate_auc_table, summarize_gate

    tables: list[pd.DataFrame] = []

    def draw(result: "Result") -> dict[str, "Axes"]:
        tables.append(separation(result))
        return _figures(result, tables[0], options)

    def about(result: "Result") -> str:
        layer = _layer(tables[0], options)
        sentence = summarize_gate(result, tables[0], options.token, options.layer)
        return f"{sentence}\n\n{gate_auc_table(tables[0], layer)}\n"

    check = partial(require_layer, layer=options.layer)
    code = analyse("gate", options, measure_gate, draw, about, check=check, plan=_plan)
    if tables:
        path = results_folder("gate", options) / "separation.csv"
        print(f"  {write_text(path, tables[0].to_csv(index=False))}")
    return code


def require_layer(vlm: "VLM", layer: int | None) -> None:
    """Refuse a layer that the model does not have."""
    if layer is not None and layer >= vlm.num_layers:
        raise AttribError(f"--layer {layer}: the model has layers 0 to {vlm.num_layers - 1}")


def _layer(table: "pd.DataFrame", options: GateOptions) -> int:
    from attrib.analyses.gate_roc import best_layer

    return best_layer(table, options.token) if options.layer is None else options.layer


def _figures(result: "Result", table: "pd.DataFrame", options: GateOptions) -> "dict[str, Axes]":
    from attrib import plots
    from attrib.analyses.gating import TOKENS

    layer = _layer(table, options)
    similarities = {
        f"similarity-{token}": plots.gate_similarity(result, table, token, layer)
        for token in TOKENS
    }
    return {
        "gate": plots.gate_auc(table, options.token),
        "gate-tokens": plots.gate_tokens(table),
    } | similarities


def _plan(_vlm: "VLM", data: "EditData") -> Iterator[str]:
    from attrib.analyses.gate_table import related

    inputs = sum(1 for _ in related(data.samples))
    yield f"cost: {len(data) + inputs} inputs run once each: {len(data)} edits, {inputs} others"

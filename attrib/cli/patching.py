"""`attrib patching`: whose answer comes out when another image's states are put into a layer."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic import field_validator, model_validator
from typer import Option

from attrib.cli.analyse import analyse
from attrib.cli.command import add_command
from attrib.cli.options import PANEL, AnalysisOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.analyses.patching import PatchSpan
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.results import Result

SPANS = ("visual", "text", "last", "all")


class PatchingOptions(AnalysisOptions):
    """Options of `attrib patching`."""

    span: Annotated[
        str,
        Option(help="Where states are replaced: visual, text, last (the last prompt token), all "
               "(the control); several with commas between.", rich_help_panel=PANEL),
    ] = "visual,last"  # fmt: skip
    other_image: Annotated[
        Path | None, Option(help="The other photo.", rich_help_panel="One photo")
    ] = None
    fit: Annotated[
        bool,
        Option("--fit", help="Crop and scale the other image to the size of the first, for models "
               "whose number of visual tokens depends on it.", rich_help_panel=PANEL),
    ] = False  # fmt: skip

    @field_validator("span", mode="before")
    @classmethod
    def _known_spans(cls, given: Any) -> str:
        names = [name.strip() for name in str(given).split(",")]
        if unknown := [name for name in names if name not in SPANS]:
            raise ValueError(f"no span {unknown[0]!r}; spans are {', '.join(SPANS)}")
        # One spelling for the same spans, because they tell runs apart.
        return ",".join(name for name in SPANS if name in names)

    @model_validator(mode="after")
    def _two_photos(self) -> "PatchingOptions":
        if (self.prompt is None) != (self.other_image is None):
            raise ValueError("one photo: give --image, --prompt and --other-image together")
        return self


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "patching", PatchingOptions, patching)


def patching(options: PatchingOptions) -> int:
    """Whose answer comes out when another image's states are put into a layer."""
    from attrib import plots
    from attrib.analyses.tables import measure_patching
    from attrib.data import open_photo
    from attrib.report.summaries import summarize_patching

    def draw(result: "Result") -> dict[str, "Axes"]:
        return {
            "patching": plots.patching(result),
            "patching-difference": plots.patching_difference(result),
        }

    spans = cast("list[PatchSpan]", options.span.split(","))
    other = open_photo(options.other_image) if options.other_image else None
    measure = partial(measure_patching, spans=spans, other=other, fit=options.fit)
    plan = partial(_plan, len(spans))
    return analyse("patching", options, measure, draw, summarize_patching, plan=plan)


def _plan(spans: int, vlm: "VLM", data: "EditData") -> Iterator[str]:
    passes = 2 + spans * (vlm.num_layers - 1) / 2
    yield f"cost: {passes:g} forward passes for each of {len(data)} pairs at most"

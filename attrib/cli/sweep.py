"""`attrib sweep`: noise on one modality, layer by layer, over data or about one photo."""

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field, field_validator
from typer import Option

from attrib.cli.analyse import analyse
from attrib.cli.command import add_command
from attrib.cli.layers import LayerOptions
from attrib.cli.options import PANEL
from attrib.cli.outputs import log
from attrib.cli.sweep_plan import planned_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.results import Result

SIGMAS = "0.1,0.3,0.5,0.7,1.0"
MATTERS = (
    "model", "data", "batch_size", "modality", "sigmas", "unit", "draws", "layers", "spare_last",
    "seed",
)  # fmt: skip


class SweepOptions(LayerOptions):
    """Options of `attrib sweep`."""

    free = LayerOptions.free | {"max_versions"}

    modality: Annotated[
        Literal["text", "visual", "both"],
        Option(help="Which tokens the noise hits.", rich_help_panel=PANEL),
    ] = "text"
    sigmas: Annotated[
        str, Option(help="Sizes of the noise, with commas between.", rich_help_panel=PANEL)
    ] = SIGMAS
    unit: Annotated[
        Literal["std", "abs"],
        Option(help="std: sigma counts standard deviations of the states it is added to; abs: it "
               "is the noise's own.", rich_help_panel=PANEL),
    ] = "std"  # fmt: skip
    draws: Annotated[
        int, Option(help="Draws of noise to average over.", min=1, rich_help_panel=PANEL),
        Field(ge=1),
    ] = 1  # fmt: skip
    spare_last: Annotated[
        bool,
        Option("--spare-last", help="Leave the last prompt token alone.", rich_help_panel=PANEL),
    ] = False
    max_versions: Annotated[
        int | None,
        Option(help="Disturbed examples to run at once.", show_default="by size", min=1,
               rich_help_panel=PANEL),
        Field(ge=1),
    ] = None  # fmt: skip

    @field_validator("sigmas", mode="before")
    @classmethod
    def _plain_sigmas(cls, given: Any) -> str:
        # One spelling for the same numbers, because they tell runs apart.
        return ",".join(map(repr, _sigmas(given)))

    def arguments(self) -> dict[str, Any]:
        """What `attrib.sensitivity` is asked for, seed and unit aside."""
        return {
            "modality": self.modality,
            "sigmas": _sigmas(self.sigmas),
            "draws": self.draws,
            "layers": self.layer_list(),
            "spare_last": self.spare_last,
            "max_versions": self.max_versions,
        }


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "sweep", SweepOptions, sweep)


def sweep(options: SweepOptions) -> int:
    """How far noise on one modality moves the output, layer by layer (DualEdit, Fig. 2)."""
    from attrib import plots
    from attrib.analyses.tables import measure_sensitivity
    from attrib.report.summaries import summarize_sensitivity

    def draw(result: "Result") -> dict[str, "Axes"]:
        return {
            "sensitivity": plots.sensitivity(result),
            "sensitivity-log": plots.sensitivity(result, log=True),
        }

    if taken := _defaults(options):
        log(f"sweep: nothing else said, so {taken}")
    arguments = options.arguments()
    measure = partial(measure_sensitivity, **arguments, unit=options.unit, seed=options.seed)
    plan = partial(planned_sweep, arguments, options.batch_size)
    return analyse("sweep", options, measure, draw, summarize_sensitivity, plan=plan)


def _defaults(options: SweepOptions) -> str:
    """The options that were left out and decide what is measured, as they could be typed."""
    values = options.model_dump(exclude=options.model_fields_set)
    typed = []
    for name in MATTERS:
        if name in values and (values[name] or name == "seed"):
            typed.append(f"--{name.replace('_', '-')} {values[name]}")
        elif name in values:
            typed.append({"layers": "all layers", "spare_last": "last token not spared"}[name])
    return ", ".join(typed)


def _sigmas(given: Any) -> list[float]:
    """Sizes of noise from "0.1,0.3" or from the list that a YAML file holds."""
    parts = given.split(",") if isinstance(given, str) else given
    try:
        sigmas = [float(part) for part in parts]
    except (TypeError, ValueError):
        sigmas = []
    if not sigmas or not all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise ValueError(f"expected numbers of 0 or more, such as {SIGMAS}, got {given!r}")
    return sigmas

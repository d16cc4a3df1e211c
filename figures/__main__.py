"""`python -m figures`: draw the papers' figures from committed or new numbers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field
from typer import Argument, Option

from attrib.cli.command import ExitCode, add_command, exit_code
from attrib.cli.outputs import log, refuse_unwritable
from attrib.vocabulary import Dtype

if TYPE_CHECKING:
    from figures import Figure, Setting

PANEL = "Measuring"


class FiguresOptions(BaseModel):
    """Options of `python -m figures`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Annotated[
        list[str] | None,
        Argument(help="For example dualedit_figure_1 visedit_figure_7.", show_default="all"),
    ] = None
    style: Annotated[
        Literal["default", "paper"],
        Option(help="default: colour-blind safe; paper: like the papers."),
    ] = "default"
    measure: Annotated[
        bool, Option("--measure", help="Measure the numbers first.", rich_help_panel=PANEL)
    ] = False
    model: Annotated[
        str, Option(help="Embedded name, Hugging Face id, or folder.", rich_help_panel=PANEL)
    ] = "tiny-llava"
    data: Annotated[
        str,
        Option(help="scenes-vqa, or a folder in the E-VQA / E-IC layout.", rich_help_panel=PANEL),
    ] = "scenes-vqa"
    split: Annotated[
        str,
        Option(help="Split of the data; vqa-train and so on for a folder.", rich_help_panel=PANEL),
    ] = "validation"
    image_root: Annotated[
        Path | None,
        Option(help="Folder of the images, if --data is a folder.", show_default="DATA/images",
               rich_help_panel=PANEL),
    ] = None  # fmt: skip
    limit: Annotated[
        int, Option(help="Number of samples.", min=2, rich_help_panel=PANEL), Field(ge=2)
    ] = 100
    seed: Annotated[int, Option(help="Seed of noise and intervals.", rich_help_panel=PANEL)] = 0
    editors: Annotated[
        Path,
        Option(help="Folder with the trained editors visedit-seed-0, dualedit-seed-0.",
               rich_help_panel=PANEL),
    ] = Path("runs/table/tiny-llava/scenes-vqa")  # fmt: skip
    dtype: Annotated[Dtype, Option(help="Type of the weights.", rich_help_panel=PANEL)] = "auto"
    results: Annotated[
        Path, Option(help="Folder of the numbers; written with --measure, else read.")
    ] = Path("figures/data")
    out: Annotated[Path, Option(help="Folder for the pictures and their index.")] = Path("figures")


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "figures", FiguresOptions, figures)


def figures(options: FiguresOptions) -> int:
    """Draw the papers' figures: pictures, numbers and verdicts."""
    from figures import STYLES, Measured, find, names, other_models, write, write_index

    refuse_unwritable(options.out)
    chosen = [find(name) for name in options.names or names()]
    if options.measure:
        refuse_unwritable(options.results)
        _measure(chosen, _setting(options), options.results)
    read: dict[str, Measured] = {}
    for figure in chosen:
        read[figure.name] = Measured.load(options.results / figure.name)
        for path in write(figure, read[figure.name], options.out, STYLES[options.style]):
            print(f"  {path}")
        print(f"{figure.source}: {figure.verdict(read[figure.name]).text}")
    if not options.names:
        print(f"  {write_index(read, options.out, other_models(options.out))}")
    return ExitCode.DONE


def _measure(chosen: "Sequence[Figure]", setting: "Setting", results: Path) -> None:
    for figure in chosen:
        log(f"figures: measuring {figure.name}: {setting.model} on {setting.data}")
        figure.measure(setting).save(results / figure.name)


def _setting(options: FiguresOptions) -> "Setting":
    from figures import Setting

    fields = ("model", "data", "split", "limit", "seed", "editors", "image_root", "dtype")
    return Setting(**{name: getattr(options, name) for name in fields})


def main() -> None:
    """Run `python -m figures` and exit with a code of the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_to(app)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # reported in one line
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

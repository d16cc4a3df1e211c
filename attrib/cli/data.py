"""`attrib data ...`: look at data before using it, or write the embedded scenes out."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.command import ExitCode


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = typer.Typer(no_args_is_help=True)
    group.command("check")(check)
    group.command("make")(make)
    app.add_typer(group, name="data", help="Check a folder of edit data; write out the scenes.")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder in the E-VQA / E-IC layout.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images; without it none is looked for.")
    ] = None,
    pixels: Annotated[
        Literal["decode", "header"],
        typer.Option(help="decode finds every broken picture, header is faster."),
    ] = "decode",
) -> None:
    """Report counts, duplicates, malformed rows and train/eval overlap; exits with 1 if unsound."""
    from attrib.data.check import check as check_folder
    from attrib.data.check_text import to_markdown

    report = check_folder(folder, image_root, pixels=pixels)
    print(to_markdown(report))
    if not report.sound:
        raise typer.Exit(ExitCode.TOO_MANY_FAILURES)


def make(
    what: Annotated[Literal["scenes"], typer.Argument(help="The embedded scenes.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Write the embedded scenes as files in the E-VQA and E-IC formats, with their pictures."""
    from attrib.data.scenes.export import export_folder

    made = export_folder(out, seed=seed)
    for split, count in made.rows.items():
        print(f"{split}: {count} edits")
    print(f"{made.folder}: {what}, {made.written} pictures written, {made.kept} were there")

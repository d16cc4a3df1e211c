"""`attrib data ...`: check edit data, export the embedded scenes, write a sample image."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.command import ExitCode


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = typer.Typer(no_args_is_help=True)
    group.command("check")(check)
    group.command("export")(export)
    group.command("make", hidden=True)(export)  # the earlier name
    group.command("sample")(sample)
    app.add_typer(group, name="data", help="Check edit data, export the scenes, get an image.")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder in the E-VQA / E-IC layout.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images; without it they are not checked.")
    ] = None,
    pixels: Annotated[
        Literal["decode", "header"],
        typer.Option(help="decode finds every broken image; header is faster."),
    ] = "decode",
) -> None:
    """Report counts, duplicates, malformed rows and train/eval overlap; exit with 1 on errors."""
    from attrib.data.check import check as check_folder

    report = check_folder(folder, image_root, pixels=pixels)
    print(report.to_markdown())
    if not report.sound:
        raise typer.Exit(ExitCode.TOO_MANY_FAILURES)


def export(
    what: Annotated[Literal["scenes"], typer.Argument(help="The embedded scenes.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Write the embedded scenes and their images in the E-VQA and E-IC file formats."""
    from attrib.data.scenes.export import export_folder

    result = export_folder(out, seed=seed)
    for split, count in result.rows.items():
        print(f"{split}: {count} edits")
    print(f"{result.folder}: {what}, {result.written} images written, {result.kept} existed")


def sample(
    out: Annotated[Path, typer.Argument(help="PNG file to write.")] = Path("sample.png"),
) -> None:
    """Write a sample image that the embedded models can answer questions about."""
    from attrib.data import sample_image
    from attrib.files import atomic_write

    with atomic_write(out) as file:
        sample_image().save(file, format="PNG")
    print(f'{out}: try "What color is the star?", "What shape is red?", "Where is the heart?"')

"""`attrib data ...`: check edit data, export the scenes, get an image."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.command import ExitCode
from attrib.files import atomic_write

HELP = "Check edit data, export the scenes, get an image."


def add_to(app: typer.Typer, name: str) -> None:
    """Add the group of commands to the command line."""
    group = typer.Typer(no_args_is_help=True)
    group.command("check")(check_data)
    group.command("export")(export)
    group.command("make", hidden=True)(export)  # a former name
    group.command("sample")(sample)
    app.add_typer(group, name=name, help=HELP)


def check_data(
    data: Annotated[
        Path, typer.Argument(help="Folder of a benchmark (E-VQA, VLKEB, ...), or a table.")
    ],
    image_root: Annotated[
        Path | None,
        typer.Option(help="Folder of the images; without it those of a benchmark are not checked."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Which columns of a table hold what: image=file,prompt=question."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of a table, by its column split, to check alone.")
    ] = None,
    pixels: Annotated[
        Literal["decode", "header"] | None,
        typer.Option(
            help="decode finds every broken image; header is faster.", show_default="decode"
        ),
    ] = None,
) -> None:
    """Report counts, duplicates, malformed rows and train/eval overlap; exit with 1 on errors."""
    from attrib.data.check import check
    from attrib.data.check_table import check_table
    from attrib.data.tables import is_table
    from attrib.errors import AttribError

    how: Literal["decode", "header"] = pixels or "decode"
    if is_table(data, split):
        report = check_table(data, image_root, columns=columns, split=split, pixels=how)
    elif columns or split:
        raise AttribError(
            f"--{'columns' if columns else 'split'}: {data} is no table; leave it out"
        )
    elif pixels and image_root is None:
        raise AttribError("--pixels: images are checked with --image-root alone; give it as well")
    else:
        report = check(data, image_root, pixels=how)
    print(report.to_markdown())
    if not report.sound:
        raise typer.Exit(ExitCode.TOO_MANY_FAILURES)


def export(
    what: Annotated[Literal["scenes"], typer.Argument(help="The embedded scenes.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    limit: Annotated[
        int | None,
        typer.Option(help="Edits per split.", min=1, show_default="all: some 22,000 images"),
    ] = None,
) -> None:
    """Write the embedded scenes and their images in the E-VQA and E-IC file formats."""
    from attrib.data.scenes.export import export_folder

    result = export_folder(out, seed=seed, limit=limit)
    for split, count in result.rows.items():
        print(f"{split}: {count} edits")
    print(f"{result.folder}: {what}, {result.written} images written, {result.kept} existed")


def sample(
    out: Annotated[Path, typer.Argument(help="PNG file to write.")] = Path("sample.png"),
) -> None:
    """Write a sample image that the embedded models can answer questions about."""
    from attrib.data import sample_image

    with atomic_write(out) as file:
        sample_image().save(file, format="PNG")
    print(f'{out}: try "What color is the star?", "What shape is red?", "Where is the heart?"')

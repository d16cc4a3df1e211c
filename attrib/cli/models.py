"""`attrib models ...`: list the embedded models, check a model, assemble MiniGPT-4."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.command import ExitCode

SCORES = {"questions": "vqa", "captions": "captions, exact", "facts": "facts"}


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = typer.Typer(no_args_is_help=True)
    group.command("list")(list_models)
    group.command("check")(check)
    group.command("assemble")(assemble)
    app.add_typer(group, name="models", help="List, check and assemble models.")


def list_models() -> None:
    """List the embedded models with their size and their exact-match scores."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from attrib.files import WEIGHTS, embedded_names

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "family", "layers", "params", *SCORES):
        text = column in ("model", "family")
        table.add_column(column, justify="left" if text else "right", no_wrap=True)
    for name in embedded_names():
        file = WEIGHTS / name / "measured.json"
        if not file.is_file():
            table.add_row(name, "not measured")
            continue
        facts = json.loads(file.read_text(encoding="utf-8"))
        family, size = facts["family"].partition(" (")[0], f"{facts['parameters'] / 1e6:.1f} M"
        scores = [f"{facts['scores'][key][0]:.1%}" for key in SCORES.values()]
        table.add_row(name, family, str(facts["layers"]), size, *scores)
    if table.row_count:
        Console().print(table)
    else:
        print("this installation has no embedded models")
    print("any Hugging Face image-text-to-text model works too: attrib models check NAME_OR_PATH")


def check(
    model: Annotated[str, typer.Argument(help="Embedded name, Hugging Face id, or folder.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
    ] = False,
) -> None:
    """Run every check on a model; exit with 3 if one fails."""
    from attrib.checks import check as check_model
    from attrib.model.checkpoint import read_checkpoint
    from attrib.model.vlm import VLM

    # Not `load`, which refuses a model at the first check that fails.
    loaded = read_checkpoint(model, device, dtype, revision, trust_remote_code)
    report = check_model(VLM(*loaded, model))
    for result in report.results:
        print(f"{'works ' if result.passed else 'BROKEN'}  {result.check}: {result.detail}")
    total = len(report.results)
    print(f"{model}: {total - len(report.failed)} of {total} checks pass")
    if not report.passed:
        raise typer.Exit(ExitCode.CANNOT_START)


def assemble(
    what: Annotated[Literal["minigpt4"], typer.Argument(help="The model to assemble.")],
    llm: Annotated[Path, typer.Option(help="Folder of the language model, vicuna-7b.")],
    blip2: Annotated[
        Path, typer.Option(help="Folder of the BLIP-2 with its vision tower and Q-Former.")
    ],
    projection: Annotated[Path, typer.Option(help="The published linear layer, a .pth file.")],
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="Type of the stored weights.")
    ] = "float16",
) -> None:
    """Assemble MiniGPT-4 from its published parts into a folder for --model."""
    import torch

    from attrib.model.minigpt4 import assemble_minigpt4

    folder = assemble_minigpt4(llm, blip2, projection, out, getattr(torch, dtype))
    print(f"{folder}: {what} is ready; next: attrib models check {folder}")

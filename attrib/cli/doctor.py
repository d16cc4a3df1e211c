"""`attrib doctor`: what this machine and this installation can do."""

import os

import typer

from attrib.cli.command import ExitCode
from attrib.environment import versions

GIB = 1 << 30
BYTES_PER_PARAMETER = 2  # bfloat16
SPARE = 1.3  # weights are not all: activations, the vocabulary's logits


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Show versions, devices, memory and embedded models; exit with 3 if something is missing."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    problems = []
    for name, found in versions().items():
        table.add_row(name, found)
        if found == "not installed":
            problems.append(f"{name} is not installed: pip install {name}")
    table.add_section()
    for name, found in _devices():
        table.add_row(name, found)
    table.add_section()
    models = _embedded_models()
    table.add_row("embedded models", ", ".join(models) or "none")
    table.add_row("hub cache", _hub_cache())
    if not models:
        problems.append("the installation has no embedded models: install it again, whole")
    Console().print(table)
    print("\n".join(problems) or "everything needed is here; next: attrib demo")
    if problems:
        raise typer.Exit(ExitCode.CANNOT_START)


def _devices() -> list[tuple[str, str]]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [("CPU", f"{cores} cores, {_fits(memory)}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{device.name}, {_fits(device.total_memory)}"))
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU, shares the memory above"))
    return rows


def _fits(memory: int) -> str:
    billions = memory / BYTES_PER_PARAMETER / SPARE / 1e9
    return f"{memory / GIB:.0f} GiB: room for {billions:.1f} billion parameters in bfloat16"


def _embedded_models() -> list[str]:
    from attrib.environment import embedded_names

    return embedded_names()


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE

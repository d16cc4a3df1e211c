"""`attrib doctor`: versions, devices and models of this installation."""

import os
import platform
import shutil
from pathlib import Path

import typer

from attrib.cli.command import ExitCode
from attrib.files import embedded_names, versions

GIB = 1 << 30
BYTES_PER_PARAMETER = 2  # bfloat16
HEADROOM = 1.3  # for activations and logits
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, both under WSL


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Show versions, devices, memory and embedded models; exit with 3 if something is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from rich import box
    from rich.console import Console
    from rich.table import Table

    installed, models = versions(), embedded_names()
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

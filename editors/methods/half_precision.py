"""A trained editor in half the bytes: its files with tensors in float16.

    python -m editors.methods.half_precision runs/dual half/dual

Adapters and gates compute in float32 all the same: loading converts the numbers.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from attrib.errors import AttribError
from editors.gating.gates import CONFIG, TENSORS
from editors.io import SETTINGS, save_tensors
from editors.methods.adapter_editor import ADAPTERS, GATE

FILES = (SETTINGS, ADAPTERS, f"{GATE}/{TENSORS}", f"{GATE}/{CONFIG}")  # not checkpoints


def halve(folder: str | Path, out: str | Path) -> list[Path]:
    """Copy the adapters of a folder, its record and its gate, with tensors in float16.

    Args:
        folder: A trained editor of hidden states (VisEdit, DualEdit).
        out: Where its files go.

    Returns:
        The files written.

    Raises:
        AttribError: There is no such editor, or a number exceeds the range of float16.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / SETTINGS).exists() or not (folder / ADAPTERS).exists():
        raise AttribError(f"{folder}: no trained VisEdit or DualEdit ({SETTINGS}, {ADAPTERS})")
    names = [name for name in FILES if (folder / name).exists()]
    for name in names:
        source, target = folder / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".safetensors":
            tensors = load_file(source)
            save_tensors(target, {k: _half(f"{source}: {k}", v) for k, v in tensors.items()})
        else:
            shutil.copyfile(source, target)
    return [out / name for name in names]


def _half(name: str, value: Tensor) -> Tensor:
    """A tensor in float16; integers as they are."""
    if not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    if not torch.equal(half.isfinite(), value.isfinite()):
        raise AttribError(f"{name} has numbers beyond the range of float16")
    return half


def main() -> None:
    """Write the files of the editor in a folder into another one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    sys.stdout.writelines(f"{path}\n" for path in halve(given.folder, given.out))


if __name__ == "__main__":
    main()

"""A trained editor in half the bytes: its files with tensors in float16.

    python -m editors.training.half_precision runs/dual half/dual

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
from editors.io import SETTINGS, save_tensors

KEPT = ("adapters.safetensors", "gate.safetensors")  # not checkpoints


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
    if not (folder / SETTINGS).exists() or not (folder / KEPT[0]).exists():
        raise AttribError(f"{folder}: no trained VisEdit or DualEdit ({SETTINGS}, {KEPT[0]})")
    sources = [folder / SETTINGS, folder / "gate" / "gate.json"]
    sources += [path for name in KEPT for path in (folder / name, folder / "gate" / name)]
    written = []
    for source in filter(Path.exists, sources):
        written.append(out / source.relative_to(folder))
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".safetensors":
            shutil.copyfile(source, written[-1])
        else:
            halved = {k: _half(f"{source}: {k}", v) for k, v in load_file(source).items()}
            save_tensors(written[-1], halved)
    return written


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

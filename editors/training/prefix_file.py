"""Prefix states in files: of data sets whose states do not fit into memory.

Each edit has a file of its own; what fits stays in the system's cache of files. A thread reads the
files of the next step while a step is computed. States are stored in the model's own type, so that
steps are those of states in memory, bit for bit.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from safetensors.torch import load_file, save_file
from torch import Size, Tensor, device
from torch.utils import _pytree as pytree

from editors.training.prefix import PrefixStates

Tensors = dict[str, Tensor]  # by number
Inputs = Mapping[str, Sequence[PrefixStates]]  # of one edit, by role
DISK_SHARE = 0.5  # of the free disk that states may take


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: the beginning, along all axes, of one in the file."""

    name: str
    shape: Size
    device: device


@dataclass(frozen=True, eq=False)
class _Layout:
    """What is not stored: the structure, its values that are no tensors, and places of tensors."""

    spec: pytree.TreeSpec
    leaves: list[Any]


@dataclass(eq=False)
class PrefixFiles:
    """The prefix states of edits, in the order in which they were added.

    The files are this process's own: they go with it. A killed one leaves them; the next training
    in the folder on the same machine removes them.

    Attributes:
        out: A folder below which they are written.
    """

    out: Path
    _folder: Path = field(init=False, repr=False)
    _layouts: list[_Layout] = field(default_factory=list, init=False, repr=False)
    _expected: dict[int, Future[Tensors]] = field(default_factory=dict, init=False, repr=False)
    _reader: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "prefix-states"), init=False, repr=False
    )

    def __post_init__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        _remove_left(self.out)
        self._folder = Path(mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=self.out))
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # also at exit

    @staticmethod
    def have_room(out: Path, num_bytes: float) -> bool:
        """Whether so many bytes are a small share of the free disk below a folder."""
        place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        return num_bytes < DISK_SHARE * shutil.disk_usage(place).free

    def add(self, inputs: Inputs) -> None:
        """Store the inputs of the next edit."""
        leaves, spec = pytree.tree_flatten(
            {role: [dict(vars(one)) for one in some] for role, some in inputs.items()}
        )
        held: dict[Any, Tensor] = {}
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.nbytes >= held.get(_storage(leaf), leaf).nbytes:
                held[_storage(leaf)] = leaf
        names = {storage: str(i) for i, storage in enumerate(held)}
        stored = {names[at]: tensor.cpu().contiguous() for at, tensor in held.items()}
        save_file(stored, self._path(len(self._layouts)))
        kept = [
            _Place(names[_storage(leaf)], leaf.shape, leaf.device)
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in leaves
        ]
        self._layouts.append(_Layout(spec, kept))

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to read the edits of the next step while this one is computed.

        What was expected before and not read is dropped. Memory is pinned where a GPU needs it.
        """
        self._expected = {
            i: self._expected.pop(i, None) or self._reader.submit(self._load, i)
            for i in dict.fromkeys(numbers)
        }

    def read(self, number: int) -> dict[str, list[PrefixStates]]:
        """The inputs of an edit, on the devices on which they were."""
        waiting = self._expected.pop(number, None)
        tensors = waiting.result() if waiting else self._load(number)
        layout = self._layouts[number]
        devices = {at.name: at.device for at in layout.leaves if isinstance(at, _Place)}
        moved = {name: tensors[name].to(at, non_blocking=True) for name, at in devices.items()}
        leaves = [
            moved[leaf.name][tuple(slice(num) for num in leaf.shape)]
            if isinstance(leaf, _Place)
            else leaf
            for leaf in layout.leaves
        ]
        fields = pytree.tree_unflatten(leaves, layout.spec)
        return {role: [PrefixStates(**one) for one in some] for role, some in fields.items()}

    def _load(self, number: int) -> Tensors:
        tensors, kept = load_file(self._path(number)), self._layouts[number].leaves
        on_gpu = any(isinstance(leaf, _Place) and leaf.device.type == "cuda" for leaf in kept)
        # A copy: what is only mapped would be read from the disk when the step needs it.
        return {n: t.pin_memory() if on_gpu else t.clone() for n, t in tensors.items()}

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"


def _storage(tensor: Tensor) -> tuple[device, int]:
    """Names what a tensor shares with its views."""
    return tensor.device, tensor.untyped_storage().data_ptr()


def _prefix() -> str:
    """How the folders of this machine begin: others may share the disk."""
    return f".prefix-states-{re.sub(r'[^A-Za-z0-9.]', '_', platform.node())}-"


def _remove_left(out: Path) -> None:
    """Remove the folders of processes of this machine that are gone."""
    for folder in out.glob(f"{_prefix()}*"):
        number = folder.name.removeprefix(_prefix()).partition("-")[0]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    """Whether a process exists; taken for granted where signal 0 does not ask (Windows)."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True

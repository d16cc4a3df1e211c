"""Prefix states in files: of data sets whose states do not fit into memory.

Each edit has a file of its own, which is mapped into memory to be read; what fits stays in the
system's cache of files. States are stored in the model's own type, so that steps are those of
states in memory, bit for bit.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from safetensors.torch import load_file, save_file
from torch import Tensor, device
from torch.utils import _pytree as pytree

from editors.training.prefix import PrefixStates

Inputs = Mapping[str, Sequence[PrefixStates]]  # of one edit, by role
DISK_SHARE = 0.5  # of the free disk that states may take


@dataclass(frozen=True, eq=False)
class _Layout:
    """What is not stored: the structure, its values that are no tensors, and devices of tensors."""

    spec: pytree.TreeSpec
    leaves: list[Any]


@dataclass(eq=False)
class PrefixFiles:
    """The prefix states of edits, in the order in which they were added.

    The files are this process's own: they go with it.

    Attributes:
        out: A folder below which they are written.
    """

    out: Path
    _folder: Path = field(init=False, repr=False)
    _layouts: list[_Layout] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        self._folder = Path(mkdtemp(prefix=".prefix-states-", dir=self.out))
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
        tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(stored, self._path(len(self._layouts)))
        kept = [leaf.device if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._layouts.append(_Layout(spec, kept))

    def read(self, number: int) -> dict[str, list[PrefixStates]]:
        """The inputs of an edit, on the devices on which they were."""
        layout, tensors = self._layouts[number], load_file(self._path(number))
        leaves = [
            tensors[str(i)].to(leaf) if isinstance(leaf, device) else leaf
            for i, leaf in enumerate(layout.leaves)
        ]
        fields = pytree.tree_unflatten(leaves, layout.spec)
        return {role: [PrefixStates(**one) for one in some] for role, some in fields.items()}

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

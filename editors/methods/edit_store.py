"""A store of many edits: held at once, unlearned one by one, in one file that only grows.

    store = EditStore.open("edits.store", vlm, editor)
    name = store.add(request)            # encoded, and appended to the file
    with store.applied():                # the nearest edit, or none, holds for each input
        vlm.generate(batch)
    store.remove(name)                   # appends a line; the model answers as before the edit

The file is a header, then records: a length of 8 bytes and that many bytes of safetensors, whose
metadata has the edit's name, or the name that is removed. A record that was cut off when a process
was killed is dropped at the next opening; nothing before it is ever rewritten.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from attrib.data.samples import EditRequest
from attrib.errors import AttribError, SetupError
from attrib.files import write_text
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from editors.adapters.sites import MemoryEntry, memories_from, tensors_of
from editors.base import Edit
from editors.io import digest_of

LENGTH = 8  # bytes of a record's length
ABOUT = "edit"  # metadata key of a record


@dataclass(eq=False)
class EditStore:
    """Edits of one editor by name, oldest first, and the file that they are in.

    Attributes:
        path: The file; None for a store in memory.
        vlm: The model.
        editor: The editor, behind a gate that picks one edit per input.
    """

    path: Path | None
    vlm: VLM
    editor: Any
    _memories: dict[str, MemoryEntry] = field(default_factory=dict, repr=False)
    _made: int = field(default=0, repr=False)
    _edit: Edit | None = field(default=None, repr=False)  # of all memories, with their index

    @classmethod
    def open(cls, path: str | Path, vlm: VLM, editor: Any) -> "EditStore":
        """The store in a file, which is made if it does not exist.

        Raises:
            AttribError: The editor has no gate, or its edits cannot be held together.
            SetupError: The file is no store, or one of another model or editor.
        """
        path = Path(path)
        _require_gate(editor)
        head = json.dumps({"model": fingerprint(vlm), "editor": digest_of(editor.tensors)})
        if not path.exists():
            write_text(path, head + "\n")
        store = cls(path, vlm, editor)
        with path.open("rb") as file:
            if file.readline().decode(errors="replace") != head + "\n":
                raise SetupError(f"{path}: no store of edits of this model by this editor")
            whole = file.tell()
            for record in _records(file):
                store._replay(record)
                whole = file.tell()
        if whole < path.stat().st_size:  # cut off when a process was killed
            with path.open("r+b") as file:
                file.truncate(whole)
        return store

    def __len__(self) -> int:
        return len(self._memories)

    @property
    def names(self) -> list[str]:
        """The names of the edits, oldest first."""
        return list(self._memories)

    @property
    def edit(self) -> Edit:
        """All edits as one; the index of their keys is made once after each change."""
        edit = self._edit
        if edit is None:
            edit = self._edit = self.editor.from_memories(list(self._memories.values()))
        return edit

    def applied(self) -> AbstractContextManager[None]:
        """Apply the edits inside the context."""
        return self.edit.applied(self.vlm)

    def add(self, request: EditRequest, name: str | None = None) -> str:
        """Make the edit of a request; return its name.

        Raises:
            AttribError: The name is taken.
        """
        name = name or f"edit-{self._made}"
        if name in self._memories:
            raise AttribError(f"the store has an edit {name!r}; remove it, or give another name")
        (memory,) = self.editor.edit(self.vlm, request).memories
        about = {"name": name, "prompt": request.prompt, "target": request.target}
        self._append(save(tensors_of([memory]), {ABOUT: json.dumps(about)}))
        self._memories[name], self._made = memory, self._made + 1
        self._edit = None
        return name

    def remove(self, name: str) -> None:
        """Unlearn one edit: the model answers as if it had never been made, bit for bit.

        Raises:
            AttribError: There is no such edit.
        """
        if name not in self._memories:
            known = ", ".join(self.names[-5:]) or "none"
            raise AttribError(f"the store has no edit {name!r}; its newest are {known}")
        self._append(save({}, {ABOUT: json.dumps({"removed": name})}))
        del self._memories[name]
        self._edit = None

    def _append(self, record: bytes) -> None:
        if self.path is None:
            return
        with self.path.open("ab") as file:
            file.write(len(record).to_bytes(LENGTH, "little") + record)

    def _replay(self, record: bytes) -> None:
        size = int.from_bytes(record[:8], "little")
        about = json.loads(json.loads(record[8 : 8 + size])["__metadata__"][ABOUT])
        if "removed" in about:
            self._memories.pop(about["removed"], None)
            return
        request = EditRequest(None, about["prompt"], about["target"])
        tensors = {name: value.to(self.vlm.device) for name, value in load(record).items()}
        (self._memories[about["name"]],) = memories_from([request], tensors)
        self._made += 1


def _require_gate(editor: Any) -> None:
    if getattr(editor, "from_memories", None) is None:
        raise AttribError(
            f"{editor.name} keeps no memory of its edits; dualedit, visedit, serac do"
        )
    if editor.gate is None:
        raise AttribError(
            f"{editor.name} needs a gate that picks one of several edits per input; train it with "
            "one, or take editor.with_gate(...)"
        )


def _records(file: Any) -> Iterator[bytes]:
    """The whole records from where a file stands; the file is left after the last one."""
    while True:
        start = file.tell()
        size = int.from_bytes(file.read(LENGTH), "little")
        record = file.read(size)
        if not size or len(record) < size:
            file.seek(start)
            return
        yield record

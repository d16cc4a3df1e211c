"""The gate behind which all cells of a grid are scored, fitted once and kept beside them.

It reads the unedited model, so it may read any layer, wherever a cell writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attrib.data.rows import HARD_LOCALITY
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import read_json, write_text
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate
from editors.gating.features import related_inputs
from editors.gating.gates import load_gate, save_gate
from editors.gating.threshold import gate_scores
from editors.gating.training import fit_gate
from editors.training.losses import ROLES

Opened = Sequence[Mapping[str, Sequence[bool]]]
FIRST = 0  # the layer that gates of earlier versions read; their records do not name it


@dataclass(frozen=True)
class GridGate:
    """The gate of a grid.

    Attributes:
        name: One of `editors.gating.gates.GATES`.
        layer: The layer that it reads.
        out: The grid's folder.
    """

    name: str
    layer: int
    out: Path

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.out / f"gate-{self.name}"

    @property
    def _made_of(self) -> Path:
        return self.out / f"gate-{self.name}.json"

    def check(self, vlm: VLM, samples: Sequence[EditSample]) -> None:
        """Refuse a folder whose gate is another one.

        Raises:
            AttribError: It is of another model, layer or of other edits.
        """
        made_of = self._made_of
        if made_of.exists() and read_json(made_of) != self._origin(vlm, samples):
            raise AttribError(
                f"{self.folder} is of another model or layer, or of other edits; choose another "
                "--out"
            )

    def open_inputs(
        self, vlm: VLM, samples: Sequence[EditSample], test: Sequence[EditSample]
    ) -> Opened:
        """Per test edit and role, which of its teacher-forced inputs open the gate.

        It is fitted to `samples`, unless the folder has it.
        """
        if not self._made_of.exists():
            with torch.enable_grad():
                gate = fit_gate(self.name, vlm, samples, self.layer)
            assert gate is not None
            save_gate(self.folder, gate)
            write_text(self._made_of, json.dumps(self._origin(vlm, samples), indent=1))
        return _opened(vlm, test, load_gate(self.folder))

    def _origin(self, vlm: VLM, samples: Sequence[EditSample]) -> dict[str, Any]:
        layer = {} if self.layer == FIRST else {"layer": self.layer}
        return {"model": fingerprint(vlm), "samples": [s.id for s in samples], **layer}


def _opened(vlm: VLM, samples: Sequence[EditSample], gate: Gate) -> Opened:
    values = gate_scores(vlm, samples, gate)["value"]
    found: list[dict[str, list[bool]]] = [{} for _ in samples]
    for one, value in zip(related_inputs(samples), values, strict=True):
        role = one.relation if one.relation in ROLES else HARD_LOCALITY
        found[one.row].setdefault(role, []).append(bool(value >= gate.threshold))
    return found

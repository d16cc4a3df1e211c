"""The gate behind which all cells of a grid are scored, fitted once and kept beside them.

It reads the unedited model, so it may read any layer, wherever a cell writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrib.data.rows import HARD_LOCALITY
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import read_json
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate
from editors.gating.features import related_inputs
from editors.gating.fitted import fit_once, origin_of, require_origin
from editors.gating.gates import NO_GATE, load_gate
from editors.gating.threshold import gate_scores
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

    def check(self, vlm: VLM, samples: Sequence[EditSample]) -> None:
        """Refuse a folder whose gate is another one.

        Raises:
            AttribError: It is of another model, layer or of other edits.
        """
        made_of = self.out / f"gate-{self.name}.json"  # of earlier versions
        if made_of.exists() and read_json(made_of) != self._earlier_origin(vlm, samples):
            raise AttribError(
                f"{self.folder} is of another model or layer, or of other edits; choose another "
                "--out"
            )
        if self.name != NO_GATE:
            require_origin(self.folder, origin_of(self.name, vlm, samples, self.layer))

    def open_inputs(
        self, vlm: VLM, samples: Sequence[EditSample], test: Sequence[EditSample]
    ) -> Opened:
        """Per test edit and role, which of its teacher-forced inputs open the gate.

        It is fitted to `samples`, unless the folder has it.
        """
        fit_once(self.folder, self.name, vlm, samples, self.layer)
        return _opened(vlm, test, load_gate(self.folder))

    def _earlier_origin(self, vlm: VLM, samples: Sequence[EditSample]) -> dict[str, Any]:
        layer = {} if self.layer == FIRST else {"layer": self.layer}
        return {"model": fingerprint(vlm), "samples": [s.id for s in samples], **layer}


def _opened(vlm: VLM, samples: Sequence[EditSample], gate: Gate) -> Opened:
    values = gate_scores(vlm, samples, gate)["value"]
    found: list[dict[str, list[bool]]] = [{} for _ in samples]
    for one, value in zip(related_inputs(samples), values, strict=True):
        role = one.relation if one.relation in ROLES else HARD_LOCALITY
        found[one.row].setdefault(role, []).append(bool(value >= gate.threshold))
    return found

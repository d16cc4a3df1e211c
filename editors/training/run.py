"""One editor trained on edits, in a folder that holds first its checkpoints and then the editor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from attrib.runs.provenance import fingerprint
from editors.training.distributed import Ranks
from editors.training.losses import Weights
from editors.training.trainer import Objective, Run, Training
from editors.training.watching import Watch

logger = logging.getLogger("attrib")


@runtime_checkable
class Saved(Protocol):
    """What can be written into a folder."""

    def save(self, path: str | Path) -> None:
        """Write it."""
        ...


E = TypeVar("E", bound=Saved)


@dataclass(frozen=True)
class EditorTraining:
    """The training of one editor on edits, in a folder that will hold the editor.

    Attributes:
        editor: Name of the editor.
        vlm: The model.
        training: How long, how fast.
        weights: Of the parts of the loss.
        kept: Edits that are trained on.
        held: Edits that are validated on.
        out: The folder.
        settings: What else makes it another training, by name; JSON or dataclasses.
    """

    editor: str
    vlm: VLM
    training: Training
    weights: Weights
    kept: Sequence[EditSample]
    held: Sequence[EditSample]
    out: Path
    settings: Mapping[str, Any]

    def run(self, objective: Objective, watch: Watch | None = None) -> dict[str, Any]:
        """Train to the end; how it was trained and what came of it, as JSON.

        Raises:
            AttribError: The folder holds another training, or the loss is not finite.
        """
        run = Run(objective, self.training, self.out, self._identity(), logger.info, watch)
        progress = run.train()
        (kept,) = (seen for seen in progress.curve if seen["step"] == progress.best_step)
        return {
            "training": asdict(self.training),
            "weights": asdict(self.weights),
            "samples": len(self.kept),
            "held_out": len(self.held),
            "best_step": progress.best_step,
            "best_loss": kept["loss"],
            "seconds": progress.seconds,
            "curve": progress.curve,
        }

    def saved(self, editor: E) -> E:
        """The editor, written into the folder by the first process; no other goes on before."""
        ranks = Ranks.of_environment()
        if ranks.first:
            editor.save(self.out)
        ranks.wait()
        return editor

    def _identity(self) -> dict[str, Any]:
        plain = {name: _plain(value) for name, value in self.settings.items()}
        return {
            "editor": self.editor,
            "model": fingerprint(self.vlm),
            **plain,
            "weights": asdict(self.weights),
            "data": [sample.id for sample in self.kept],
        }


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

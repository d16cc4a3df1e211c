"""What a table of editors is made of, and where that is."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One editor on one model and dataset, with one seed."""

    backbone: str
    data: str
    editor: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Where the editor and its scores are."""
        return place(out, self.backbone, self.data) / f"{self.editor}-seed-{self.seed}"


def place(out: Path, backbone: str, data: str) -> Path:
    """The folder of a model and dataset."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).name) for name in (backbone, data)]
    return out.joinpath(*parts)

"""What a table of editors is made of, and where that is."""

import re
from dataclasses import dataclass
from pathlib import Path

SCORES = Path("scores", "scores.parquet")  # in the folder of a job that is done
FOLDER = re.compile(r"(.+)-seed-(\d+)")


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

    def scores(self, out: Path) -> Path:
        """The file of its scores."""
        return self.folder(out) / SCORES


def place(out: Path, backbone: str, data: str) -> Path:
    """The folder of a model and dataset."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).name) for name in (backbone, data)]
    return out.joinpath(*parts)


def done(out: Path, backbone: str, data: str) -> list[Job]:
    """What was scored of a model and dataset, by this command or an earlier one."""
    scored = [path.parent.parent.name for path in place(out, backbone, data).glob(f"*/{SCORES}")]
    found = [match for name in scored if (match := FOLDER.fullmatch(name))]
    return [Job(backbone, data, match[1], int(match[2])) for match in found]

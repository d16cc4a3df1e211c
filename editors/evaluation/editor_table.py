"""Trains and scores many editors into one folder, and collects them into comparisons."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attrib.data import EditData
from attrib.errors import AttribError
from attrib.files import read_json, write_text
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.runs import Rank
from attrib.vocabulary import SCORES_FILE
from editors.evaluation import prepare_evaluation, save_scores
from editors.evaluation.comparison import Comparison, Trained
from editors.evaluation.extra_costs import ExtraCosts
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.scoring import Scoring
from editors.gating.gated_editor import behind
from editors.gating.gates import load_gate
from editors.io import SETTINGS
from editors.registry import EDITORS, load_editor

OWN, GATED = "scores", "scores-behind-the-gate"  # folders of a finished job's scores
CPU_TIME = "spent.json"
FOLDER = re.compile(r"(.+)-seed-(\d+)")
Layers = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Job:
    """One editor on one model and dataset, with one seed."""

    backbone: str
    data: str
    editor: str
    seed: int

    def __str__(self) -> str:
        return f"{self.editor} on {self.backbone}, {self.data}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Folder of the editor and its scores."""
        return table_folder(out, self.backbone, self.data) / f"{self.editor}-seed-{self.seed}"

    def places(self, gated: bool) -> tuple[str, ...]:
        """Folders of its scores: as it is, and with `gated` behind the table's gate of its seed.

        Without training an editor is the same with every seed, and only the gate differs.
        """
        own = (OWN,) if EDITORS[self.editor].is_trained or self.seed == 0 else ()
        return (*own, GATED) if gated else own

    def is_done(self, out: Path, gated: bool = False) -> bool:
        """Whether its scores exist."""
        places = self.places(gated)
        return all((self.folder(out) / place / SCORES_FILE).exists() for place in places)


def make_jobs(
    backbones: Sequence[str],
    datasets: Sequence[str],
    editors: Sequence[str],
    seeds: int,
    gated: bool = False,
) -> list[Job]:
    """Return the jobs in order; without a gate editors without training have one seed.

    Raises:
        AttribError: There is no such editor.
    """
    if unknown := [name for name in editors if name not in EDITORS]:
        raise AttribError(f"--editors: there is no {unknown[0]!r}; there are {', '.join(EDITORS)}")
    return [
        job
        for backbone in backbones
        for data in datasets
        for editor in editors
        for seed in range(seeds)
        if (job := Job(backbone, data, editor, seed)).places(gated)
    ]


def require_known(editors: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Refuse an option that none of the editors has.

    Raises:
        AttribError: There is one.
    """
    known = {name for editor in editors for name in _options_of(editor)}
    if wrong := [name for name in settings if name not in known]:
        raise AttribError(f"--set {wrong[0]}: none of {', '.join(editors)} has such an option")


def _options_of(editor: str) -> list[str]:
    kind: Any = EDITORS[editor]
    return kind.config_class.options()


@dataclass(frozen=True)
class TableRun:
    """What the jobs of a table share.

    Attributes:
        out: Folder of all jobs.
        load_model: Loads a model by name.
        load_data: Loads the data of a job, to train on ("train") or to score ("test").
        layers: Returns where adapters write, for a model and a job.
        gate: The gate behind which every editor is scored as well, for a model and a seed; its
            folder, or None to score editors as they are alone.
        steps: Optimizer steps; None for the preset's.
        settings: Further options, of every editor that has them.
        protocols: See `editors.evaluation.protocols`.
        options: Further settings, for the manifests.
        fluency: Tokens generated before and after each edit to measure fluency; 0 for none.
        batch_size: Inputs per pass of the evaluation.
    """

    out: Path
    load_model: Callable[[str], VLM]
    load_data: Callable[[Job, str], EditData]
    layers: Callable[[VLM, Job], Layers]
    gate: Callable[[VLM, Job], Path | None]
    steps: int | None
    protocols: tuple[str, ...]
    options: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fluency: int = 0
    batch_size: int = 16

    def execute(self, jobs: Sequence[Job], log: Callable[[str], None]) -> None:
        """Train and score each job; finished parts are skipped."""
        reference = None
        for number, job in enumerate(jobs, 1):
            log(f"{number} of {len(jobs)}: {job}")
            folder = job.folder(self.out)
            with cpu_time(folder / CPU_TIME, "training"):
                vlm = self.load_model(job.backbone)
                if not (folder / SETTINGS).exists():
                    self._train(vlm, job)
            with cpu_time(folder / CPU_TIME, "scoring"):
                kept = table_folder(self.out, job.backbone, job.data) / "unedited"
                if reference is None or reference.vlm is not vlm or reference.folder != kept:
                    reference = ReferenceModel(vlm, self.protocols, self.batch_size, kept)
                gate = self.gate(vlm, job)
                for place in job.places(gate is not None):
                    self._score(job, reference, place, gate if place == GATED else None)

    def _train(self, vlm: VLM, job: Job) -> None:
        kind: Any = EDITORS[job.editor]
        steps = {"steps": self.steps} if self.steps is not None and kind.is_trained else {}
        known = _options_of(job.editor)
        given = {name: value for name, value in self.settings.items() if name in known}
        kind.train(
            vlm,
            self.load_data(job, "train"),
            layers=self.layers(vlm, job) if kind.needs_layers else None,
            out=job.folder(self.out),
            preset="auto",
            gate="none" if kind.takes_gate else None,  # that of the table is put in front
            seed=job.seed,
            **(steps | given),
        )

    def _score(
        self, job: Job, reference: ReferenceModel, place: str, gate: Path | None = None
    ) -> None:
        folder = job.folder(self.out)
        editor = load_editor(folder, reference.vlm)
        if gate is not None:
            editor = behind(editor, load_gate(gate))
        extra = ExtraCosts(self.fluency, peak=True)
        scoring = Scoring.of(editor, reference, self.protocols, extra=extra)
        run = prepare_evaluation(
            scoring,
            self.load_data(job, "test"),
            folder / place,
            [folder, folder / "gate", *([gate] if gate else [])],
            options={**self.options, "data": job.data, "protocols": list(self.protocols)},
            rank=Rank.from_environment(),
        )
        outcome = run.execute(scoring)
        if outcome is not None:  # another process writes the scores
            save_scores([run], [outcome], run.out)


def comparison(out: Path, backbone: str, data: str, command: str) -> Comparison:
    """Compare all editors whose scores the folder holds, in the order of `EDITORS`."""
    order = list(EDITORS)
    jobs = [job for job in _done_jobs(out, backbone, data) if job.editor in order]
    jobs.sort(key=lambda job: (order.index(job.editor), job.seed))
    results = [
        Result.load(path)
        for job in jobs
        for place in (OWN, GATED)
        if (path := job.folder(out) / place / SCORES_FILE).exists()
    ]
    trainings = [_trained(job, out) for job in jobs if EDITORS[job.editor].is_trained]
    cpu: dict[str, float] = {}
    for job in jobs:
        if known := cpu_seconds(job.folder(out) / CPU_TIME):
            cpu[job.editor] = cpu.get(job.editor, 0.0) + sum(known.values())
    return Comparison(backbone, data, results, trainings, command, cpu)


def table_folder(out: Path, backbone: str, data: str) -> Path:
    """Folder of a model and dataset."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).name) for name in (backbone, data)]
    return out.joinpath(*parts)


@contextmanager
def cpu_time(path: Path, step: str) -> Iterator[None]:
    """Add the CPU seconds of this process inside the context to the file's entry of `step`."""
    start = time.process_time()
    try:
        yield
    finally:
        known = cpu_seconds(path)
        seconds = known.get(step, 0.0) + time.process_time() - start
        write_text(path, json.dumps({**known, step: round(seconds, 1)}, indent=1))


def cpu_seconds(path: Path) -> dict[str, float]:
    """Return the CPU seconds in a file by step; none if it does not exist."""
    return read_json(path) if path.is_file() else {}


def _done_jobs(out: Path, backbone: str, data: str) -> list[Job]:
    folder = table_folder(out, backbone, data)
    scored = (
        path.parents[1].name
        for place in (OWN, GATED)
        for path in folder.glob(f"*/{place}/{SCORES_FILE}")
    )
    found = [match for name in dict.fromkeys(scored) if (match := FOLDER.fullmatch(name))]
    return [Job(backbone, data, match[1], int(match[2])) for match in found]


def _trained(job: Job, out: Path) -> Trained:
    record = read_json(job.folder(out) / SETTINGS)
    trained = record.get("trained") or {}
    seconds, curve = trained.get("seconds", 0.0), trained.get("curve", [])
    return Trained(job.editor, job.seed, float(seconds), curve)

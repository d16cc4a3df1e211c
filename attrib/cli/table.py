"""`attrib table`: editors side by side, trained and scored alike, beside what was published."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field
from typer import Option

from attrib.cli.caching import caching
from attrib.cli.command import ExitCode, add_command
from attrib.cli.cpu_time import cpu_seconds, cpu_time
from attrib.cli.outputs import invocation, log
from attrib.cli.table_jobs import Job, done, place
from attrib.cli.table_layers import selected
from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import ModelOptions

if TYPE_CHECKING:
    from editors.evaluation.comparison import Trained

ALL = "all"
MANIFEST, SPENT = "table.json", "spent.json"
FREE = ("out", "editors", "backbones", "data", "seeds", "device", "model")  # may grow between runs


class TableOptions(ModelOptions):
    """Options of `attrib table`; `--model` of the other commands is `--backbones` here."""

    model: Annotated[str, Option(hidden=True)] = ""
    backbones: Annotated[
        str, Option(help="Models, with commas between: embedded names, Hugging Face ids, folders.")
    ] = "tiny-llava"
    data: Annotated[
        str, Option(help="Datasets, with commas between: scenes-vqa, scenes-captions, or folders.")
    ] = "scenes-vqa"
    editors: Annotated[str, Option(help="Editors, with commas between, or all.")] = ALL
    layers: Annotated[
        str | None,
        Option(help="Where adapters write, such as 'text:1 visual:1'.",
               show_default="as `attrib select` picks them, by two words of long answers"),
    ] = None  # fmt: skip
    gate: Annotated[
        Literal["none", "prompt_last", "sequence_last", "learned"],
        Option(help="What decides which inputs the edits of VisEdit and DualEdit serve."),
    ] = "learned"
    train_split: Annotated[str | None, Option(help="Part to train on.", show_default="train")] = (
        None
    )
    test_split: Annotated[str | None, Option(help="Part to score on.", show_default="test")] = None
    image_root: Annotated[Path | None, Option(help="Folder of a folder's images.")] = None
    train_limit: Annotated[
        int | None, Option(help="Edits to train on.", min=1, show_default="all"), Field(ge=1)
    ] = None
    limit: Annotated[int, Option(help="Edits to score.", min=1), Field(ge=1)] = 500
    seeds: Annotated[int, Option(help="Trainings per editor.", min=1), Field(ge=1)] = 1
    steps: Annotated[
        int | None, Option(help="Optimizer steps of each training.", show_default="the preset's")
    ] = None
    protocols: Annotated[str, Option(help="What makes an answer right.")] = "paper,exact,generate"
    out: Annotated[Path, Option(help="Folder of editors, scores and tables.")] = Path("runs/table")


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "table", TableOptions, table)


def table(options: TableOptions) -> int:
    """Compare editors: train and score what is missing, then tabulate all."""
    jobs = list(jobs_of(options))
    _settle(options)
    missing = [job for job in jobs if not job.scores(options.out).exists()]
    log(f"table: {len(jobs)} editors, {len(missing)} of them to be scored, in {options.out}")
    with caching():
        for number, job in enumerate(missing, 1):
            named = f"{job.editor} on {job.backbone}, {job.data}, seed {job.seed}"
            log(f"{number} of {len(missing)}: {named}")
            bill = job.folder(options.out) / SPENT
            with cpu_time(bill, "training"):
                _train(job, options)
            with cpu_time(bill, "scoring"):
                _evaluate(job, options)
    for backbone, data in dict.fromkeys((job.backbone, job.data) for job in jobs):
        for path in _written(backbone, data, options):
            print(f"  {path}")
    return ExitCode.DONE


def jobs_of(options: TableOptions) -> Iterator[Job]:
    """What is to be done, in order.

    Raises:
        AttribError: There is no such editor.
    """
    from editors import EDITORS

    wanted = list(EDITORS) if options.editors == ALL else _listed(options.editors)
    if unknown := [name for name in wanted if name not in EDITORS]:
        known = ", ".join(EDITORS)
        raise AttribError(f"--editors: there is no {unknown[0]!r}; there are {known}")
    for backbone in _listed(options.backbones):
        for data in _listed(options.data):
            for editor in wanted:
                # What is not trained is the same with every seed.
                for seed in range(options.seeds if _is_trained(editor) else 1):
                    yield Job(backbone, data, editor, seed)


def _is_trained(editor: str) -> bool:
    from editors import EDITORS

    return EDITORS[editor].is_trained


def _settle(options: TableOptions) -> None:
    """Keep what the folder's editors are made with; refuse other settings."""
    from attrib.files import write_text
    from attrib.runs.manifest import diff

    now = {k: v for k, v in options.model_dump(mode="json").items() if k not in FREE}
    path = options.out / MANIFEST
    if path.exists() and (different := diff(json.loads(path.read_text()), now)):
        raise SetupError(
            f"{options.out} was made with other settings: {'; '.join(different)}; give another "
            "--out, or the settings that are there"
        )
    write_text(path, json.dumps(now, indent=1))


def _train(job: Job, options: TableOptions) -> None:
    from attrib.cli.train import TrainOptions, train
    from editors.io.editor import SETTINGS

    folder = job.folder(options.out)
    if (folder / SETTINGS).exists():
        return
    hidden = _writes_layers(job.editor)
    train(
        TrainOptions(
            **_model_options(job, options),
            editor=job.editor,
            layers=_layers(job, options) if hidden else None,
            data=job.data,
            split=options.train_split,
            image_root=options.image_root,
            limit=options.train_limit,
            gate=options.gate if hidden else None,
            steps=options.steps if _is_trained(job.editor) else None,
            seed=job.seed,
            out=folder,
        )
    )


def _layers(job: Job, options: TableOptions) -> str:
    if options.layers is not None:
        return options.layers
    out = place(options.out, job.backbone, job.data) / "select"
    given = _model_options(job, options) | {"data": job.data, "image_root": options.image_root}
    return selected(given, options.train_split, out)


def _evaluate(job: Job, options: TableOptions) -> None:
    from attrib.cli.evaluate import EvaluateOptions, evaluate

    folder = job.folder(options.out)
    evaluate(
        EvaluateOptions(
            **_model_options(job, options),
            editor=folder,
            data=job.data,
            split=options.test_split,
            image_root=options.image_root,
            limit=options.limit,
            protocols=options.protocols,
            out=folder / "scores",
        )
    )


def _written(backbone: str, data: str, options: TableOptions) -> list[Path]:
    """The table of all editors that the folder has scores of, in the order of `EDITORS`."""
    from attrib import plots
    from attrib.results import Result
    from editors import EDITORS
    from editors.evaluation.comparison import Comparison

    order = list(EDITORS)
    jobs = [job for job in done(options.out, backbone, data) if job.editor in order]
    jobs.sort(key=lambda job: (order.index(job.editor), job.seed))
    results = [Result.load(job.scores(options.out)) for job in jobs]
    trainings = [_trained(job, options.out) for job in jobs if _is_trained(job.editor)]
    cpu: dict[str, float] = {}
    for job in jobs:
        if bill := cpu_seconds(job.folder(options.out) / SPENT):
            cpu[job.editor] = cpu.get(job.editor, 0.0) + sum(bill.values())
    made = Comparison(backbone, data, results, trainings, invocation(), cpu)
    folder = place(options.out, backbone, data)
    files, curves = made.save(folder), made.curves()
    if len(curves):
        files += plots.save(plots.learning(curves), folder / "learning")
    return files


def _trained(job: Job, out: Path) -> "Trained":
    from editors.evaluation.comparison import Trained
    from editors.io.editor import SETTINGS

    record = json.loads((job.folder(out) / SETTINGS).read_text(encoding="utf-8"))
    trained = record.get("trained") or {}
    seconds, curve = trained.get("seconds", 0.0), trained.get("curve", [])
    return Trained(job.editor, job.seed, float(seconds), curve)


def _writes_layers(editor: str) -> bool:
    from editors import EDITORS

    return EDITORS[editor].needs_layers


def _model_options(job: Job, options: TableOptions) -> dict[str, Any]:
    shared = ("revision", "dtype", "device", "trust_remote_code")
    return {name: getattr(options, name) for name in shared} | {"model": job.backbone}


def _listed(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]

"""`attrib table`: train and score editors alike, and compare them with published scores."""

import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import field_validator

from attrib.cli.command import ExitCode, invocation
from attrib.cli.gates import NO_GATE
from attrib.cli.outputs import log, print_files
from attrib.cli.train import PICTURES, layers_of, named_values, require_pairs
from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import NAMED_SPLITS, ModelOptions, option
from attrib.pipeline.source import ModelLoader, require_targets
from attrib.vocabulary import GateName

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from editors.evaluation.editor_table import Job, Layers

MANIFEST = "table.json"
GROWING = (
    "out",
    "editors",
    "backbones",
    "data",
    "seeds",
    "device",
    "device_map",
    "model",
    "dry_run",
)  # may differ later
SELECTION_SAMPLES = 200
SELECTION_WORDS = 2  # words of a long answer, which the model reads at different layers


class TableOptions(ModelOptions):
    """Options of `attrib table`; `--model` of the other commands is `--backbones` here."""

    model: Annotated[str, typer.Option(hidden=True)] = ""
    backbones: str = option(
        "tiny-llava", "Models, comma-separated: embedded names, Hugging Face ids, folders."
    )
    data: str = option(
        "scenes-vqa",
        "Datasets, comma-separated: scenes-vqa, scenes-captions, folders of benchmarks, or your "
        "own tables.",
    )
    editors: str = option("all", "Editors, comma-separated, or all.")
    layers: str | None = option(
        None,
        "Where adapters write, such as 'text:1 visual:1'.",
        shown="as `attrib select` chooses, with two words of long answers",
    )
    gate: GateName = option(
        "learned",
        "Gate behind which every editor is scored, besides as it is (ungated; serac with its own "
        "classifier, lte with its retrieval); fitted once per model, data and seed. none: as they "
        "are alone.",
    )
    gate_layer: int = option(1, "Layer that the gate reads.", ge=0)
    train_split: str | None = option(None, "Part to train on.", shown="train")
    test_split: str | None = option(None, "Part to score on.", shown="test")
    image_root: Path | None = option(None, "Folder of the images.")
    columns: str | None = option(
        None, "Which columns of tables hold what, such as image=file,prompt=question."
    )
    train_limit: int | None = option(None, "Edits to train on.", shown="all", ge=1)
    limit: int = option(500, "Edits to score.", ge=1)
    seeds: int = option(
        1,
        "Trainings per editor, each with its own gate, and on scenes with training data of its "
        "own.",
        ge=1,
    )
    steps: int | None = option(None, "Optimizer steps of each training.", shown="the preset's")
    set: list[str] = option(
        [],
        "An option of every editor that has it, as name=value, such as end_token=true; repeatable.",
        shown="the preset's",
    )
    _pairs = field_validator("set")(require_pairs)
    protocols: str = option("paper,exact,generate", "When an answer counts as right.")
    fluency: int = option(
        0,
        "Tokens that are generated before and after each edit to measure fluency; 0 for none.",
        ge=0,
    )
    out: Path = option(Path("runs/table"), "Folder of editors, scores and tables.")
    dry_run: bool = option(False, "Print the plan and write nothing.", flags=("--dry-run",))


def table(options: TableOptions) -> int:
    """Compare editors: train and score what is missing, then tabulate all."""
    from attrib import plots
    from attrib.runs import Rank
    from editors import EDITORS
    from editors.evaluation.editor_table import (
        TableRun,
        comparison,
        make_jobs,
        require_known,
        table_folder,
    )

    out, rank = options.out, Rank.from_environment()
    device = rank.device(options.device)
    wanted = list(EDITORS) if options.editors == "all" else _listed(options.editors)
    load = ModelLoader()  # keeps the model for consecutive jobs
    gated = options.gate != NO_GATE
    models, datasets = _listed(options.backbones), _listed(options.data)
    jobs = make_jobs(models, datasets, wanted, options.seeds, gated)
    require_known(wanted, named_values(options.set))
    _write_settings(options)
    missing = [job for job in jobs if not job.is_done(out, gated)]
    if options.dry_run:
        from attrib.cli.plans import table_plan

        print("\n".join(table_plan(jobs, missing, options)))
        return ExitCode.DONE
    log(f"table: {len(jobs)} editors, {len(missing)} of them to be scored, in {out}")
    run = TableRun(
        out,
        load_model=lambda name: load(options.model_copy(update={"model": name}), device),
        load_data=lambda job, part: _load_data(job, part, options),
        layers=lambda vlm, job: _layers(vlm, job, options),
        gate=lambda vlm, job: _gate(vlm, job, options),
        steps=options.steps,
        settings=named_values(options.set),
        protocols=tuple(_listed(options.protocols)),
        fluency=options.fluency,
        options={"limit": options.limit, "dtype": options.dtype, "revision": options.revision},
    )
    run.execute(missing, log)
    if rank.number > 0:  # the first process collects the scores and tabulates them
        return ExitCode.DONE
    for backbone, data in dict.fromkeys((job.backbone, job.data) for job in jobs):
        made, folder = (
            comparison(out, backbone, data, invocation()),
            table_folder(out, backbone, data),
        )
        files, curves = made.save(folder), made.curves()
        if len(curves):
            files += plots.save(plots.learning(curves), folder / "learning")
        print_files(files)
    return ExitCode.DONE


def _write_settings(options: TableOptions) -> None:
    """Write the settings of the folder's editors; refuse a folder with other settings."""
    from attrib.files import read_json, write_text
    from attrib.runs.manifest import diff

    default, now = (
        {k: v for k, v in some.model_dump(mode="json").items() if k not in GROWING}
        for some in (TableOptions(), options)
    )
    path = options.out / MANIFEST
    # An earlier version did not know every setting of today.
    if path.exists() and (different := diff({**default, **read_json(path)}, now)):
        raise SetupError(
            f"{options.out} was made with other settings: {'; '.join(different)}; give another "
            "--out, or the settings that are there"
        )
    if not options.dry_run:
        write_text(path, json.dumps(now, indent=1))


def _gate(vlm: "VLM", job: "Job", options: TableOptions) -> Path | None:
    """The folder of the gate of a model, data and seed, fitted once to the training edits."""
    from editors.evaluation.editor_table import table_folder
    from editors.gating.fitted import fit_once

    if options.gate == NO_GATE:
        return None
    place = table_folder(options.out, job.backbone, job.data)
    folder = place / f"gate-{options.gate}-seed-{job.seed}"
    named = {"train_split", "train_limit", "image_root", "columns"}
    source = {"data": job.data, **options.model_dump(mode="json", include=named)}
    edits = partial(_load_data, job, "train", options)
    fit_once(folder, options.gate, vlm, edits, options.gate_layer, job.seed, source)
    return folder


def _load_data(job: "Job", part: str, options: TableOptions) -> "EditData":
    from attrib import data
    from editors.evaluation.left_out import left_out

    name = job.data

    if part == "train":
        split, limit, need = options.train_split, options.train_limit, PICTURES
    else:
        split, limit, need = options.test_split, options.limit, ("image",)
    split = split or (part if name in NAMED_SPLITS else None)
    if split is None:
        raise AttribError(
            f"--{part}-split: which part of {name}? Such as vqa-{part}, "
            "or a value of the column split of a table"
        )
    # Scenes can be drawn anew: then a seed varies the training data and their split as well.
    seed = job.seed if part == "train" and name in NAMED_SPLITS else 0
    where: Any = {"image_root": options.image_root, "columns": options.columns}
    found = require_targets(data.load(name, split, **where, limit=limit, need=need, seed=seed))
    if part != "train" and (line := left_out(found)):
        _log_once(f"{name}: {line}")
    return found


@cache  # every editor is scored on the same data
def _log_once(line: str) -> None:
    log(line)


def _layers(vlm: "VLM", job: "Job", options: TableOptions) -> "Layers":
    from editors.evaluation.editor_table import table_folder

    if options.layers is not None:
        return layers_of(options.layers, vlm)
    shared = ("revision", "dtype", "device", "device_map", "trust_remote_code", "template")
    shared = (*shared, "processor", "image_root", "columns")
    given = {name: getattr(options, name) for name in shared}
    given |= {"model": job.backbone, "data": job.data}
    folder = table_folder(options.out, job.backbone, job.data) / "select"
    return layers_of(selected(given, options.train_split, folder), vlm)


def selected(given: dict[str, Any], train_split: str | None, out: Path) -> str:
    """The file of the layers that `attrib select` chooses on validation data, once.

    A folder's data has no validation part; its training part is used.
    """
    from attrib.cli.select import LAYERS, SelectOptions, select
    from attrib.pipeline.source import read_data
    from editors.training.config import has_phrases

    file = out / LAYERS
    if not file.exists():
        split = "validation" if given["data"] in NAMED_SPLITS else train_split
        options = SelectOptions(**given, split=split, limit=SELECTION_SAMPLES, out=out)
        words = SELECTION_WORDS if has_phrases(read_data(options)) else 1
        select(options.model_copy(update={"words": words}))
    return str(file)


def _listed(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]

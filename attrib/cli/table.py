"""`attrib table`: train and score editors alike, and compare them with published scores."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, invocation
from attrib.cli.gates import NO_GATE, require_layer
from attrib.cli.outputs import log, print_files
from attrib.cli.table_options import TableOptions, agreed, write_settings
from attrib.cli.train import PICTURES, layers_of, named_values
from attrib.errors import AttribError
from attrib.pipeline.options import NAMED_SPLITS
from attrib.pipeline.source import ModelLoader, require_targets

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from editors.evaluation.editor_table import Job, Layers

SELECTION_SAMPLES = 200
SELECTION_WORDS = 2  # words of a long answer, which the model reads at different layers


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
    loader = ModelLoader()  # keeps the model for consecutive jobs

    def load(name: str) -> "VLM":
        return loader(options.model_copy(update={"model": name}), device)

    gated = options.gate != NO_GATE
    models, datasets = _listed(options.backbones), _listed(options.data)
    jobs = make_jobs(models, datasets, wanted, options.seeds, gated)
    require_known(wanted, named_values(options.set))
    options = agreed(options)
    missing = [job for job in jobs if not job.is_done(out, gated)]
    if options.dry_run:
        from attrib.cli.plans import table_plan

        print("\n".join(table_plan(jobs, missing, options)))
        return ExitCode.DONE
    _require_layers(missing, options, load)  # before anything is trained or recorded
    write_settings(options)
    log(f"table: {len(jobs)} editors, {len(missing)} of them to be scored, in {out}")
    run = TableRun(
        out,
        load_model=load,
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


def _require_layers(jobs: "list[Job]", options: TableOptions, load: "Callable[[str], VLM]") -> None:
    """Refuse layers that a model of the jobs does not have."""
    from editors import EDITORS
    from editors.adapters.sites import check_layers

    gated = options.gate != NO_GATE
    given = options.layers is not None and any(EDITORS[job.editor].needs_layers for job in jobs)
    backbones = list(dict.fromkeys(job.backbone for job in jobs)) if gated or given else []
    for name in reversed(backbones):  # the model that is needed first is loaded last, and kept
        vlm = load(name)
        if gated:
            require_layer(options.gate_layer, vlm)
        if given:
            check_layers(vlm, layers_of(options.layers, vlm))


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

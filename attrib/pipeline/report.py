"""The layer report from samples, or from the folders of runs.

attrib.pipeline.report.report(vlm, samples, out="runs/layers")    # runs/layers/report.html
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import AnalysisOptions
from attrib.pipeline.run import execute, save_quarantined, save_tables, start
from attrib.pipeline.select import (
    LAYERS,
    Make,
    read_grid,
    run_evidence,
    start_evidence,
    with_options,
)
from attrib.pipeline.source import as_data, load_samples
from attrib.report import LayerStudy, RunRead, layer_study, read_runs, write_layer_report
from attrib.runs import Rank
from attrib.selection import LayerReport
from attrib.vocabulary import RuleName

if TYPE_CHECKING:
    import pandas as pd

    from attrib.data import EditData, EditSample
    from attrib.model.vlm import VLM

NOISE = 0.1  # of the heatmaps, in standard deviations: with little noise one draw is enough
GROUND_TRUTH = "scenes-vqa"  # the data in which the queried objects are known
logger = getLogger("attrib")


class Extra(NamedTuple):
    """An analysis of the first rows that the report shows besides the evidence."""

    name: str
    rows: int
    options: dict[str, Any]

    @property
    def folder(self) -> str:
        """The folder of its run."""
        return f"{self.name}-{self.rows}"


def report(
    vlm: "VLM",
    samples: "Sequence[EditSample]",
    out: str | Path,
    *,
    rule: RuleName = "consensus",
    number: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    pictures: int = 4,
    pointing: int = 64,
    grid: str | Path | None = None,
) -> LayerStudy:
    """Run what is missing, select layers, and write the report into a folder.

    Args:
        vlm: the model.
        samples: what `attrib.data.load` returns, or a list of `EditSample`.
        out: folder of the runs and of report.html, report.md, report.json and layers.json.
        rule: the rule that chooses.
        number: layers per modality, best first.
        seed: of noise and bootstrap draws.
        batch_size: samples per pass; by default what is efficient and fits in memory.
        pictures: number of samples with heatmaps.
        pointing: number of questions of the pointing game, which needs the data scenes-vqa.
        grid: file of scores of editors trained on a grid of layers.

    Raises:
        AttribError: No layer can be selected.
    """
    data, out = as_data(samples), Path(out)
    scores = None if grid is None else (str(grid), read_grid(Path(grid)))
    make = partial(with_options, seed=seed, batch_size=batch_size)
    run_evidence(start_evidence(vlm, data, out, make))
    for extra in extras(data.name, len(data), pictures, pointing):
        run_extra(vlm, data[: extra.rows], out, extra, make)
    by_id = {sample.id: sample for sample in data}
    study = layer_study(
        read_runs([out]), rule, number=number, seed=seed, grid=scores, pictures=pictures,
        samples=lambda _run: by_id,
    )  # fmt: skip
    write_layer_report(study, out)
    return study


def extras(data: str, rows: int, pictures: int, pointing: int) -> Iterator[Extra]:
    """Heatmaps of a few samples, and the pointing game where the data has a ground truth."""
    if pictures:
        yield Extra("heatmap", min(pictures, rows), {"noise": NOISE, "pictures": 0})
    if pointing and data == GROUND_TRUTH:
        yield Extra("faithfulness", min(pointing, rows), {})


def run_extra(
    vlm: "VLM", data: "EditData", out: Path, extra: Extra, make: Make, invocation: str = ""
) -> None:
    """Run an analysis that the report can do without, in this process; if it fails, skip it."""
    try:
        analysis = make(extra.name, extra.options)
        run = start(analysis, vlm, data, out / extra.folder, rank=Rank(), invocation=invocation)
        result = execute(run, analysis)
    except (AttribError, SetupError) as error:
        logger.warning("%s left out: %s", extra.folder, error)
        return
    if result is not None:
        save_tables(result, run.out)
        save_quarantined(result.quarantined, run.out)


def read_study(
    folders: Sequence[Path],
    *,
    grid: "tuple[str, pd.DataFrame] | None" = None,
    pictures: int = 4,
    **settings: Any,
) -> LayerStudy:
    """Select layers from the runs in folders, and collect what the report shows.

    Args:
        folders: of runs, finished or not, or folders of such folders.
        grid: scores of trained editors, after the name of their source.
        pictures: largest number of samples with heatmaps.
        settings: rule, number and seed of the selection; by default those of a layers.json in
            the folders.
    """
    chosen = saved_selection(folders)
    if chosen is not None:
        number = max(1, *(len(layers) for layers in chosen.layers.values()))
        stored = {"rule": chosen.rule, "number": number, "seed": chosen.provenance.get("seed", 0)}
        settings = {**stored, **settings}
    study = layer_study(
        read_runs(folders), **settings, grid=grid, samples=samples_of, pictures=pictures
    )
    layers, rule = study.report.layers, study.report.rule
    if chosen is not None and chosen.layers != layers and chosen.rule == rule:
        logger.warning("report: selected %s; layers.json, of other results, has %s",
                       dict(layers), dict(chosen.layers))  # fmt: skip
    return study


def saved_selection(folders: Sequence[Path]) -> LayerReport | None:
    """The layers.json of the first folder that has one."""
    files = [folder / LAYERS for folder in folders]
    return next((LayerReport.load(file) for file in files if file.is_file()), None)


def samples_of(run: RunRead) -> "Mapping[str, EditSample]":
    """The samples of a command's run by id; none if its data is missing or has changed."""
    renamed = AnalysisOptions.former_names()
    options = {renamed.get(name, name): value for name, value in run.options.items()}
    options = {n: v for n, v in options.items() if n in AnalysisOptions.model_fields}
    if "data" not in options:
        return {}  # not made by a command: the source of the samples is unknown
    digest = run.result.provenance.get("data", {}).get("sha256")
    try:
        data = load_samples(AnalysisOptions.model_validate(options))
    except (AttribError, ValueError, OSError) as error:
        logger.warning("report: the samples of %s cannot be read: %s", run.folder, error)
        return {}
    if digest and data.provenance.get("sha256", digest) != digest:
        logger.warning("report: the data of %s has changed: no samples shown", run.folder)
        return {}
    return {sample.id: sample for sample in data}

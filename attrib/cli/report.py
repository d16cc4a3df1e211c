"""`attrib report`: which layers to edit and why, as a page, as Markdown and as JSON; `attrib demo`.

A report ends with the commands to reproduce it and to continue.
"""

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typer import Option

from attrib.cli.command import ExitCode, invocation, next_command
from attrib.cli.outputs import (
    exit_code_for,
    log,
    print_files,
    refuse_unwritable,
    results_folder,
    write_manifest,
    write_quarantined,
)
from attrib.cli.select import (
    SelectOptions,
    analysis_for,
    folder_of_runs,
    make_evidence,
    with_validation_split,
)
from attrib.pipeline.options import NAMED_SPLITS, PANEL, ModelOptions, option
from attrib.pipeline.source import ModelLoader, load_model, load_samples
from attrib.vocabulary import SceneData, SceneSplit

if TYPE_CHECKING:
    from attrib.report.layer_study import LayerStudy


class DemoOptions(ModelOptions):
    """Options of the first report."""

    data: SceneData = option("scenes-vqa", "Embedded data.")
    split: SceneSplit = option("test", "Part of it.")
    limit: int = option(64, "Number of samples.", ge=1)
    batch_size: int = option(16, "Samples per pass.", ge=1)
    seed: int = option(0, "Seed of the bootstrap intervals.")
    out: Path = option(Path("demo"), "Folder of the report.")


def demo(options: DemoOptions) -> int:
    """First report on an embedded model; needs no network, GPU or account."""
    start = time.monotonic()
    from attrib.data import load as load_data
    from attrib.explorer.explore import explore
    from attrib.report import study, write_page
    from attrib.report.summaries import summarize_demo

    log(f"demo: {options.model} on {options.limit} samples of {options.data} {options.split}")
    data = load_data(options.data, options.split, limit=options.limit)
    vlm = load_model(options)
    chosen = options.model_dump(mode="json")
    made = study(
        vlm, data, batch_size=options.batch_size, seed=options.seed, options=chosen,
        commands=_demo_commands(options),
    )  # fmt: skip
    page = write_page(made, options.out / "report.html")
    for name, result in made.results.items():
        result.save(options.out / f"{name}.parquet")
    asked, photo = data[0].request, options.out / "sample.png"
    asked.images[0].save(photo)
    again = next_command("explore", options, "--image", str(photo), "--prompt", asked.prompt)
    explorer = explore(vlm, asked.image, asked.prompt, command=again)
    explored = explorer.save(options.out / "explore.html")
    write_manifest(options.out, "demo", made.provenance)
    write_quarantined(options.out, made.quarantined)
    print(summarize_demo(made.results["contributions"], made.results["wrong_key"]))
    print(f"{explored} (one answer to explore)")
    print(f"{page} (written in {time.monotonic() - start:.0f} s; open it in a browser)")
    return 0


def _demo_commands(options: DemoOptions) -> list[str]:
    on = ["--data", options.data, "--split", options.split]
    on += ["--limit", str(options.limit), "--seed", str(options.seed)]
    return [
        next_command("demo", options, *on),
        next_command("contributions", options, *on),
        next_command("contributions", options, *on, "--key", "wrong"),
        next_command("attention", options, *on),
    ]


class ReportOptions(SelectOptions):
    """Options of `attrib report`."""

    free = frozenset({"pictures", "pointing"})
    read_with_runs = SelectOptions.read_with_runs | {"pictures"}

    runs: list[Path] | None = option(
        None,
        "Folder of `attrib select` or of a run, finished or not; repeatable, such as for "
        "heatmaps. Nothing is computed then.",
        panel=PANEL,
        shown="none",
        flags=("--from",),
    )
    against: Path | None = option(
        None,
        "The scores.csv of `attrib grid` (or Parquet: text, visual, seed, score), on which the "
        "regret of the selection is computed.",
        panel=PANEL,
        flags=("--grid",),
    )
    words: Annotated[int, Option(hidden=True, min=1, max=1), Field(ge=1, le=1)] = 1
    pictures: int = option(4, "Number of images with heatmaps.", panel=PANEL, ge=0)
    pointing: int = option(
        64,
        "Questions of the pointing game: heatmaps against the ground truth, which only scenes-"
        "vqa has.",
        panel=PANEL,
        ge=0,
    )


def report(options: ReportOptions) -> int:
    """Layer-selection report: one page with the layers, the evidence and the confidence."""
    from dataclasses import replace

    from attrib.pipeline.report import read_study
    from attrib.pipeline.select import read_grid
    from attrib.report.confidence import verdict
    from attrib.report.layer_report import write_layer_report
    from attrib.report.selection_summary import accuracy, headline

    options = with_validation_split(options)
    grid = None if options.against is None else (str(options.against), read_grid(options.against))
    out = folder_of_runs("report", options) or results_folder("select", _selecting(options))
    refuse_unwritable(out)
    if not options.runs and not _make(options, _selecting(options), out):
        return ExitCode.DONE  # a dry run, or another process writes the report
    folders = options.runs or [out]
    typed = options.model_fields_set if options.runs else {"rule", "number", "seed"}
    settings = {n: getattr(options, n) for n in ("rule", "number", "seed") if n in typed}
    study = read_study(folders, grid=grid, pictures=options.pictures, **settings)
    selected = study.report
    selected = replace(selected, provenance={**selected.provenance, "invocation": invocation()})
    commands = commands_of(study, out, folders, with_grid=grid is not None)
    study = replace(study, report=selected, commands=commands)
    said = study.partial, headline(selected), accuracy(selected), verdict(study)
    print("\n".join(filter(None, said)))
    print_files(write_layer_report(study, out))
    return exit_code_for(study.quarantined, options.max_failures)


def _selecting(options: ReportOptions) -> SelectOptions:
    """The options of `attrib select`, which has its runs in the same folder."""
    shared = options.model_fields_set & set(SelectOptions.model_fields)
    return SelectOptions(**{name: getattr(options, name) for name in shared})


def _make(options: ReportOptions, selecting: SelectOptions, out: Path) -> bool:
    """Run what is missing; whether this process writes the report."""
    from attrib.pipeline.report import extras, run_extra
    from attrib.runs import Rank

    device = Rank.from_environment().device(options.device)
    load = ModelLoader()
    if make_evidence(selecting, out, load) is None:
        return False
    limit = options.limit or max(options.pictures, options.pointing)
    for extra in extras(options.data, limit, options.pictures, options.pointing):
        given = selecting.model_copy(update={"limit": extra.rows, "max_failures": None})
        make = partial(analysis_for, given)
        run_extra(load(given, device), load_samples(given), out, extra, make, invocation())
    return True


def commands_of(
    study: "LayerStudy", out: Path, folders: Sequence[Path], *, with_grid: bool
) -> dict[str, list[str]]:
    """Command lines by purpose.

    Args:
        study: the content of the report.
        out: the folder of the report, with its layers.json.
        folders: that the report was read from.
        with_grid: whether a grid of trained editors was given.
    """
    made = [str(run.result.provenance.get("invocation", "")) for run in study.runs]
    again = [line for line in dict.fromkeys([*made, invocation()]) if line]
    on, scored = _on(study, "train"), _on(study, "eval")
    editor = out / "editor"
    commands = {
        "Reproduce": again,
        "Train and evaluate an editor at these layers": [
            shlex.join(["attrib", "train", *on, "--layers", str(out / "layers.json"), "--out",
                        str(editor)]),
            shlex.join(["attrib", "evaluate", *scored, "--editor", str(editor)]),
        ],
    }  # fmt: skip
    if not with_grid and (pairs := _pairs(study)):
        given = [part for folder in folders for part in ("--from", str(folder))]
        grid = str(out / "grid")
        commands["Compute the regret: editors at the layers of each rule"] = [
            shlex.join(["attrib", "grid", *on, "--text", "none", "--visual", "none", "--pairs",
                        pairs, *_tested_on(study), "--out", grid]),
            shlex.join(["attrib", "report", *given, "--grid", f"{grid}/scores.csv", "--out",
                        str(out)]),
        ]  # fmt: skip
    return commands


def _tested_on(study: "LayerStudy") -> list[str]:
    """The split on which a grid's cells are scored, if it is not the default."""
    scored = _on(study, "eval")
    return ["--test-split", scored[scored.index("--split") + 1]] if "--split" in scored else []


def _on(study: "LayerStudy", part: str) -> list[str]:
    """Options that name the model and the data; `part` is "train" or "eval" of a folder."""
    from attrib.data.tables import is_table

    given = study.runs[0].options
    on = ["--model", str(given.get("model") or study.report.model.get("name"))]
    on += ["--revision", str(given["revision"])] if given.get("revision") else []
    on += ["--dtype", str(given["dtype"])] if given.get("dtype", "auto") != "auto" else []
    on += ["--trust-remote-code"] if given.get("trust_remote_code") else []
    on += ["--processor", str(given["processor"])] if given.get("processor") else []
    on += ["--template", given["template"]] if given.get("template", "raw") != "raw" else []
    data = str(given.get("data") or study.report.provenance.get("data", {}).get("name"))
    on += ["--data", data]
    on += ["--columns", str(given["columns"])] if given.get("columns") else []
    if is_table(data, given.get("split")):
        on += ["--split", part] if given.get("split") else []
    elif data not in NAMED_SPLITS:
        kind = "caption" if str(given.get("split") or "").startswith("caption") else "vqa"
        on += ["--split", f"{kind}-{part}"]
    return on + (["--image-root", str(given["image_root"])] if given.get("image_root") else [])


def _pairs(study: "LayerStudy") -> str:
    """The layers of the rules and of the fixed choices, as `attrib grid --pairs` takes them."""
    from attrib.selection import CONSENSUS_RULES, fixed_picks, picks_of

    picks = picks_of(study.report)
    named = {rule: picks[rule] for rule in (study.report.rule, *CONSENSUS_RULES) if rule in picks}
    found = {**named, **fixed_picks(study.report.num_layers)} if named else {}
    return "+".join(dict.fromkeys(f"{text}x{visual}" for text, visual in found.values()))

"""`attrib contributions` and `attrib attention`: one analysis over data, or about one photo."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import typer

from attrib.cli.command import add_command
from attrib.cli.models import load_model
from attrib.cli.options import AnalysisOptions, AttentionOptions, ContributionOptions
from attrib.cli.outputs import default_folder, exit_code_for, say, write_manifest, write_quarantined
from attrib.errors import CannotStart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.collect import Measure
    from attrib.data import EditData
    from attrib.results import Result


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_command(app, "contributions", ContributionOptions, contributions)
    add_command(app, "attention", AttentionOptions, attention)


def contributions(options: ContributionOptions) -> int:
    """How much each layer's attention and MLP push the key token (VisEdit, Figs. 1, 5, 6)."""
    from attrib import plots
    from attrib.measures import measure_contributions
    from attrib.report.findings import about_contributions, how_sure

    def draw(result: "Result") -> dict[str, "Axes"]:
        title = f"Contribution to the key token ({options.key})"
        return {"contributions": plots.contributions(result, title=title)}

    def about(result: "Result") -> str:
        return f"{about_contributions(result)} {how_sure(result)}"

    measure = partial(measure_contributions, key=options.key, norm=options.norm)
    return _analyse("contributions", options, measure, draw, about)


def attention(options: AttentionOptions) -> int:
    """What the last prompt token attends to in each layer (DualEdit, Fig. 1)."""
    from attrib import plots
    from attrib.measures import measure_attention
    from attrib.report.findings import about_attention

    def draw(result: "Result") -> dict[str, "Axes"]:
        return {
            "attention": plots.attention(result),
            "attention-share": plots.attention(result, quantity="share"),
        }

    return _analyse("attention", options, measure_attention, draw, about_attention)


def _analyse(
    name: str,
    options: AnalysisOptions,
    measure: "Measure",
    draw: "Callable[[Result], dict[str, Axes]]",
    about: "Callable[[Result], str]",
) -> int:
    from attrib import plots
    from attrib.collect import collect, provenance
    from attrib.results import Result

    out = options.out or default_folder(name, options)
    say(f"{name}: {options.model} on {_source(options)}, results in {out}")
    data = _data(options)
    vlm = load_model(options)
    done = collect(vlm, data, measure, batch_size=options.batch_size, what=name)
    if done.tables[name].empty:
        raise CannotStart("the data is without a wrong answer to use as key: give --key token:WORD")
    quarantined = [*data.quarantined, *done.quarantined]
    made = provenance(vlm, data, done, options.model_dump(mode="json"), options.seed)
    result = Result(name, done.tables[name], made)
    files = [result.save(out / "result.parquet")]
    for stem, ax in draw(result).items():
        files += plots.save(ax, out / stem)
    files += [write_manifest(out, name, made), *write_quarantined(out, quarantined)]
    print(about(result))
    print(f"samples used: {result.examples}, rows quarantined: {len(quarantined)}")
    print("\n".join(f"  {path}" for path in files))
    return exit_code_for(quarantined, options.max_failures)


def _source(options: AnalysisOptions) -> str:
    if options.prompt is None:
        return f"{options.data} {options.split or ''}".strip()
    return f"{options.prompt!r}" + (f" about {options.image}" if options.image else "")


def _data(options: AnalysisOptions) -> "EditData":
    from attrib.data import EditData, EditRequest, EditSample, load

    if options.prompt is None:
        split = options.split or ("test" if options.data.startswith("scenes-") else "")
        return load(options.data, split, image_root=options.image_root, limit=options.limit)
    request = EditRequest(options.image, options.prompt, options.target or "")
    typed = EditSample("photo", request, meta={"row": 0})
    return EditData("typed by hand", "", [typed], provenance={"file": "command line"})

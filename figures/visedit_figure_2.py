"""VisEdit, Figure 2: its architecture and loss, drawn from a trained editor and checked."""

from functools import partial

from figures.dualedit_figure_3 import alt, as_drawn
from figures.editor_reading import UNEXPECTED, measure_framework
from figures.estimates import counted
from figures.figure import Figure, Measured, Verdict
from figures.framework_drawing import draw_framework

NAME = "visedit_figure_2"
IN_THE_PAPER = {
    "reliability", "generality", "locality", "mapper_up", "mapper_down", "mapper_attribution",
}  # fmt: skip


def verdict(measured: Measured) -> Verdict:
    """Whether it writes visual tokens alone, and leaves text-only inputs the same bit for bit."""
    acts, sites = measured.tables["acts"], measured.tables["sites"]
    wrote = as_drawn(acts, list(sites["key"]))[acts["input"] != "text_locality"]
    confined = acts[UNEXPECTED].to_numpy() == 0
    text = (acts["input"] == "text_locality").to_numpy()
    same = acts["moved"].to_numpy()[text] == 0
    visual = set(sites["modality"]) == {"visual"} and bool(sites["mapper"].all())
    terms = set(measured.tables["losses"]["term"])
    holds = bool(wrote.all() and confined.all() and same.all() and visual and terms >= IN_THE_PAPER)
    missing = ", ".join(sorted(IN_THE_PAPER - terms)) or "none"
    statistic = (
        f"without its gate, the adapter wrote every visual token in "
        f"{counted(wrote, 'inputs with an image')} of {measured.about['n']} edits and no other "
        f"position in {counted(confined, 'inputs')}; "
        f"text-only inputs came out the same bit for bit in {counted(same, 'inputs')}; terms of "
        f"the paper's loss that it was trained without: {missing}"
    )
    return Verdict(holds, statistic)


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 2",
    "Architecture and training loss of VisEdit, drawn from a trained editor",
    "One adapter behind a middle layer moves visual states by cross-attention to the edit; an "
    "influence mapper, steered by the last token of the edit's prompt, sets how strongly each "
    "visual token is moved. It is trained on the edit's losses and three terms for the mapper. The "
    "paper's editor has no gate.",
    partial(measure_framework, name="visedit", figure=NAME),
    draw_framework,
    verdict,
    alt,
)

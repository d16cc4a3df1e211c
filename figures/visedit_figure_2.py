"""VisEdit, Figure 2: architecture and loss, drawn from a trained editor and checked."""

from functools import partial

from figures.dualedit_figure_3 import alt, follows_gate
from figures.editor_diagram import draw_editor
from figures.editor_structure import OTHER_POSITIONS, measure_framework
from figures.estimates import count_text
from figures.figure import Figure, Measured, Verdict

NAME = "visedit_figure_2"
IN_THE_PAPER = {
    "reliability", "generality", "locality", "mapper_up", "mapper_down", "mapper_attribution",
}  # fmt: skip


def verdict(measured: Measured) -> Verdict:
    """Check that only visual tokens change and that text-only inputs keep their output."""
    effects, sites = measured.tables["effects"], measured.tables["sites"]
    text = (effects["input"] == "text_locality").to_numpy()
    wrote = follows_gate(effects, list(sites["key"]))[~text]
    confined = effects[OTHER_POSITIONS].to_numpy() == 0
    same = effects["output_changed"].to_numpy()[text] == 0
    visual = set(sites["modality"]) == {"visual"} and bool(sites["mapper"].all())
    terms = set(measured.tables["losses"]["term"])
    holds = bool(wrote.all() and confined.all() and same.all() and visual and terms >= IN_THE_PAPER)
    missing = ", ".join(sorted(IN_THE_PAPER - terms)) or "none"
    statistic = (
        f"without its gate, the adapter wrote every visual token in "
        f"{count_text(wrote, 'inputs with an image')} of {measured.about['n']} edits and no other "
        f"position in {count_text(confined, 'inputs')}; "
        f"text-only inputs came out the same bit for bit in {count_text(same, 'inputs')}; terms of "
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
    draw_editor,
    verdict,
    alt,
    published="one adapter on visual states, scaled by an influence mapper; no gate",
)

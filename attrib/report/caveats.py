"""What a report on layers does not show, in plain sentences."""

from collections.abc import Iterator

from attrib.report.layer_study import VOTES, LayerStudy
from attrib.report.summary import model_name, name_of

FEW = 50  # examples below which an interval says little


def caveats(study: LayerStudy) -> Iterator[str]:
    """What the report does not show, a sentence each."""
    report = study.report
    if study.judged is None:
        yield (
            "Whether an edit at these layers works. The evidence says where the answer's "
            "information is and where it can be disturbed; only editors trained at several layers "
            "(attrib grid) show where editing works best."
        )
    else:
        yield from _grid_caveats(study)
    yield (
        "Whether the rules are right. The bootstrap draws the same examples again and again: it "
        "says how much the choice depends on which examples were taken, not whether the rule that "
        "chose is a good one."
    )
    yield (
        "Anything about other data or another model: all numbers are of "
        f"{model_name(report)} on {report.provenance.get('data', {}).get('name', 'this data')}."
    )
    fewest = min((run.result.examples for run in study.runs if run.name in VOTES), default=0)
    if fewest < FEW:
        yield f"Small differences: one of the analyses rests on {fewest} examples only."
    if study.judged is None or "both" not in study.judged.tables:
        yield (
            "What happens when both layers are written at once: each modality's layer is chosen "
            "alone."
        )
    yield (
        "Anything about the last layer: what it puts out before the last prompt token is read by "
        "nothing, so no rule can score it."
    )
    for line in report.left_out:
        yield f"What a rule would have said that could not be computed: {line}."
    for name in sorted(study.elsewhere):
        yield (
            f"What {name_of(name)} would say of these samples: it was run on others, is shown and "
            "counts for nothing."
        )


def _grid_caveats(study: LayerStudy) -> Iterator[str]:
    assert study.judged is not None
    seeds = [int(n) for table in study.judged.tables.values() for n in table["seeds"].dropna()]
    if seeds and min(seeds) < 2:
        yield (
            "How much of the regret is luck: the grid has one seed a cell, and the best of many "
            "noisy cells is best by luck in part."
        )
    kinds = study.judged.tables
    lacking = [
        row["pick"] for row in kinds.get("both", next(iter(kinds.values()))).to_dict("records")
        if row["regret"] != row["regret"]
    ]  # fmt: skip
    if lacking:
        yield (
            "What these picks would cost, whose cells the grid lacks: "
            f"{', '.join(dict.fromkeys(lacking))}."
        )

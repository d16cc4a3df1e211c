"""Scores behind a gate that come from the passes of the edit without one."""

import pytest
from conftest import tiny_vlm
from planted_editors import Nothing, Says, Writes, sample
from test_edited_answers import PROTOCOLS, median_gate

from attrib.errors import AttribError
from attrib.runs.collect import collect
from editors.evaluation import evaluate
from editors.evaluation.groups import Groups
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.scoring import COST, SCORES, Scoring
from editors.evaluation.tables import costs, summary
from editors.gating.gated_editor import behind

SOME = [sample(0, " R"), sample(1, "blue"), sample(2, "red")]


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def sorted_scores(frame):
    frame = frame[(frame["protocol"] != COST) & (frame["editor"] != "unedited")]
    columns = [name for name in frame if name != "label"]
    return frame[columns].sort_values(columns).reset_index(drop=True)


@pytest.mark.parametrize("editor", [Says("red"), Writes()], ids=["says", "writes"])
def test_rows_are_those_of_two_evaluations(vlm, editor):
    gate, reference = median_gate(vlm, SOME[1]), ReferenceModel(vlm, PROTOCOLS)
    scoring = Scoring.of(editor, reference, PROTOCOLS, behind=gate)
    found = collect(vlm, SOME, scoring, batch_size=1, what="edits").tables[SCORES]
    assert set(found["gate"]) == {"-", "ungated", "prompt_last"}
    for one, name in ((None, "ungated"), (gate, "prompt_last")):
        alone = evaluate(vlm, behind(editor, one), SOME, PROTOCOLS, reference=reference).frame
        assert sorted_scores(alone).equals(sorted_scores(found[found["gate"].isin([name])]))
    by_gate = {name: sorted_scores(part)["value"].tolist() for name, part in found.groupby("gate")}
    assert by_gate["ungated"] != by_gate["prompt_last"]  # the gate does decide


def test_tables_have_both_rows_and_the_costs_of_the_edit_alone(vlm):
    gate, reference = median_gate(vlm, SOME[1]), ReferenceModel(vlm)
    scoring = Scoring.of(Says(), reference, reference.protocols, behind=gate)
    assert scoring.described()["behind"] == "prompt_last"
    found = evaluate(vlm, Says(), SOME, reference=reference)
    both = collect(vlm, SOME, scoring, batch_size=1, what="edits").tables[SCORES]
    result = type(found)(found.analysis, both, found.provenance)
    assert set(summary([result])["gate"]) == {"-", "ungated", "prompt_last"}
    assert costs([result])["gate"].tolist() == ["ungated"]


def test_what_does_not_follow_from_the_edit_alone_is_refused(vlm):
    reference = ReferenceModel(vlm)
    gate = median_gate(vlm, SOME[1])
    make = {"reference": reference, "protocols": reference.protocols}
    with pytest.raises(AttribError, match="one edit at a time"):
        Scoring.of(Nothing(), **make, groups=Groups(SOME, 2), behind=gate)
    with pytest.raises(AttribError, match="a gate of its own"):
        Scoring.of(behind(Nothing(), gate), **make, behind=gate)
    with pytest.raises(AttribError, match="reads the answer"):
        leaking = median_gate(vlm, SOME[1], "sequence_last")
        Scoring.of(Nothing(), **make, behind=leaking)

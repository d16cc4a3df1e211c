"""Several edits at once: the groups, what holds in them, and what of an earlier edit is left."""

import pytest
import torch
from conftest import picture, tiny_vlm
from planted_editors import Nothing, Says, sample

from attrib.data import EditRequest
from attrib.errors import AttribError, RowError
from editors.base import SequentialEdit, WeightEdit, edit_all, encode_requests
from editors.evaluation import evaluate
from editors.evaluation.groups import Groups
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.scoring import COST

WORDS = ("red", "gold", "big")


class Overwrites(Says):
    """Each edit sets the same weights: the last one wins."""

    sequential = True


class Counts(Nothing):
    """Remembers what was put together."""

    def __init__(self):
        self.groups = []

    def edit(self, vlm, request):
        encode_requests(vlm, [request])
        return request.target

    def merge(self, edits):
        self.groups.append(list(edits))
        return WeightEdit({})


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def samples(words=WORDS):
    return [sample(i, word) for i, word in enumerate(words)]


def rel(result, label):
    rows = result.where(editor=label, protocol="paper", metric="rel").frame
    return dict(zip(rows["example"], rows["value"], strict=True))


def test_one_at_a_time_all_hold_and_together_the_last_one_does(vlm):
    reference = ReferenceModel(vlm, ("paper",))
    alone = evaluate(vlm, Overwrites(), samples(), ("paper",), reference=reference)
    assert rel(alone, "says") == {"s0": 1, "s1": 1, "s2": 1}
    three = evaluate(vlm, Overwrites(), samples(), ("paper",), reference=reference, num_edits=3)
    found = rel(three, "says, 3 edits at once")
    assert found["s2"] == 1
    assert max(found["s0"], found["s1"]) < 1
    assert three.provenance["options"]["edits_at_once"] == 3


def test_groups_are_taken_in_order_and_the_last_may_be_smaller(vlm):
    editor = Counts()
    some = samples((*WORDS, "tan", "hot"))
    result = evaluate(vlm, editor, some, ("paper",), num_edits=2)
    assert editor.groups == [["red", "gold"], ["big", "tan"], ["hot"]]
    costs = result.where(editor="nothing, 2 edits at once", protocol=COST, metric="edit_ms").frame
    assert len(costs) == 5


def test_a_sample_that_cannot_be_used_is_no_part_of_its_group(vlm):
    def broken():
        raise RowError("no such file", file="rows.json", row=1, field="image")

    some = samples()
    some[1] = sample(1, "", id="empty")
    object.__setattr__(some[0].request, "source", broken)
    edit, together, _ = Groups(some, 3).edit(vlm, editor := Counts(), some[2])
    assert (together, editor.groups) == (1, [["big"]])
    assert edit.num_bytes == 0


def test_a_request_that_the_model_cannot_read_is_no_part_of_its_group(vlm):
    some = samples()
    some[1] = sample(1, request=EditRequest(picture(), "an <image> there", "gold"))
    result = evaluate(vlm, editor := Counts(), some, ("paper",), num_edits=3)
    assert editor.groups == [["red", "big"]]
    assert set(result.frame["example"]) == {"s0", "s2"}
    assert len(result.provenance["quarantined_rows"]) == 1


def test_edits_inside_one_another_leave_the_model_as_it_was(vlm):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    edit = edit_all(vlm, Overwrites(), samples())
    assert isinstance(edit, SequentialEdit) and len(edit.edits) == 3
    with pytest.raises(RuntimeError, match="inside"), edit.applied(vlm):
        raise RuntimeError("inside")
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    held = [value for one in edit.edits for value in one.weights.values()]
    assert edit.num_bytes == sum(value.numel() * value.element_size() for value in held) > 0


def test_an_editor_that_keeps_one_edit_says_so(vlm):
    with pytest.raises(AttribError, match="nothing keeps one edit at a time"):
        edit_all(vlm, Nothing(), samples())
    with pytest.raises(AttribError, match="edits at once: expected 1 or more, got 0"):
        Groups(samples(), 0)

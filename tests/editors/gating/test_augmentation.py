"""What gates are trained on besides a dataset's own inputs: changed pictures, near negatives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture
from tiny_edits import samples

from attrib.data.samples import EditRequest, EditSample
from editors.gating.augmentation import (
    CHANGES,
    MINED_IMAGE,
    MINED_QUESTION,
    OTHER_QUESTION,
    further_inputs,
    nearest_pictures,
    with_change,
)
from editors.gating.features import APPLIES, EASY
from editors.gating.pairs import InputStates, sample_pairs


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_picture_is_the_same_at_every_access_and_another_one(name):
    own = EditRequest([picture(60, 40, seed=1), picture(40, 40, seed=2)], "What?", "x")
    changed = with_change(own, name, seed=3)
    first, again = changed.images, changed.images
    assert (changed.prompt, changed.target, len(first)) == ("What?", "x", 2)
    for one, other, before in zip(first, again, own.images, strict=True):
        assert np.array_equal(one, other) and one.mode == "RGB"
        assert one.size != before.size or not np.array_equal(one, before)
    sizes = {"crop": (54, 36), "frame": (72, 52)}
    assert first[0].size == sizes.get(name, (60, 40))
    if name == "flip":
        assert np.array_equal(np.asarray(first[0])[:, ::-1], own.images[0])


def test_changes_take_turns_and_rows_are_made_of_their_own_part_alone():
    edits = samples(6)
    edits[1] = replace(edits[1], hard_locality=[])
    edits[2] = EditSample("text", EditRequest(None, "What is it?", "red"))
    found = further_inputs(edits, [0, 1, 2, 3], 2)
    assert {one.row for one in found} == {0, 1, 3}  # without an image nothing changes
    by = {row: [one.relation for one in found if one.row == row] for row in (0, 1, 3)}
    assert by[0].count(OTHER_QUESTION) == 2 and {"crop", "jpeg"} <= {*by[0]}
    assert {"jpeg", "flip"} <= {*by[1]} and {"frame", "crop"} <= {*by[3]}
    assert MINED_QUESTION in by[1] and MINED_QUESTION not in by[0] + by[3]
    assert all(some.count(MINED_IMAGE) == 1 for some in by.values())
    prompts = {one.request.prompt for one in found if one.row == 1}
    assert prompts <= {edits[row].request.prompt for row in (0, 1, 2, 3)}
    assert not {*CHANGES} - {*APPLIES} and not {OTHER_QUESTION, MINED_IMAGE} & {*APPLIES, *EASY}
    again = further_inputs([*edits[:4], *samples(9)[6:]], [0, 1, 2, 3], 2)
    assert [one[:2] for one in again] == [one[:2] for one in found]


def test_the_nearest_picture_is_a_similar_one_and_not_the_same():
    base = [picture(seed=seed) for seed in range(4)]
    close = base[0].copy()
    close.putpixel((3, 3), (255, 0, 255))
    close = close.resize(close.size).rotate(3)
    pictures = [*base, close, base[1].copy()]
    edits = [EditSample(str(i), EditRequest(one, "What?", "x")) for i, one in enumerate(pictures)]
    near = nearest_pictures(edits, range(6))
    assert near[0] == 4 and near[4] == 0
    assert near[1] != 5 and near[5] != 1
    assert nearest_pictures(edits, [0]) == {}


@pytest.mark.parametrize("num", [2, 3, 7])
def test_one_picture_of_all_edits_has_no_other_one(num):
    """It is the mean, from which it has no direction: the cosine does not tell that it is equal."""
    edits = [EditSample(str(i), EditRequest(picture(), "What?", "x")) for i in range(num)]
    assert nearest_pictures(edits, range(num)) == {}
    assert MINED_IMAGE not in {one.relation for one in further_inputs(edits, range(num), 1)}


def test_changed_pictures_are_covered_and_other_questions_about_them_are_not():
    edits = samples(3)
    inputs = further_inputs(edits, range(3), 4)
    states = [{"text": torch.zeros(1, 2), "visual": torch.zeros(1, 2)} for _ in inputs]
    pairs = sample_pairs(InputStates(inputs, states), torch.Generator().manual_seed(0))
    for query, edit, covered in zip(pairs.query, pairs.edit, pairs.covered, strict=True):
        one, other = inputs[query], inputs[edit]
        assert covered == (one.row == other.row and one.relation in CHANGES)
        assert other.relation in CHANGES
    assert pairs.covered.any()

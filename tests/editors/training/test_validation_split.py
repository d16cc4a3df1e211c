"""What is validated on is not trained on, and inputs stay with their edits."""

from dataclasses import replace

import pytest
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.errors import AttribError
from editors.training.dataset import cache_dataset
from editors.training.run import validation_split


def test_the_last_samples_are_kept_apart_unless_others_are_given():
    some = samples(6)
    assert validation_split(some, None) == (some[:5], some[5:])
    assert validation_split(some[:4], some[4:]) == (some[:4], some[4:])


def test_samples_that_are_trained_on_cannot_validate():
    with pytest.raises(AttribError, match=f"{samples(1)[0].id!r} is trained on as well"):
        validation_split(samples(3), samples(1))


def test_two_edits_of_one_name_keep_their_own_inputs():
    one, other = samples(2)
    data = cache_dataset(
        tiny_vlm("llava"), [one, replace(other, id=one.id)], first=[1], signals=[1]
    )
    for item, alone in enumerate((one, other)):
        mine = cache_dataset(tiny_vlm("llava"), [alone], first=[1], signals=[1])
        assert {k: len(v) for k, v in data.inputs[item].items()} == {
            k: len(v) for k, v in mine.inputs[0].items()
        }
        (found,), (wanted,) = data.inputs[item]["request"], mine.inputs[0]["request"]
        assert found.labels.equal(wanted.labels)

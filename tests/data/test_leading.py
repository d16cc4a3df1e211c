"""The first words of an answer go behind the prompt; what they were is still said."""

import pytest

from attrib import data
from attrib.cli.analyse import load_data
from attrib.cli.evaluate import EvaluateOptions
from attrib.cli.options import ContributionOptions
from attrib.data import EditData, EditRequest, EditSample
from attrib.data.leading import lead


def captions(*targets):
    samples = [
        EditSample(f"c-{i}", EditRequest(None, "a photo of", target), meta={"row": i})
        for i, target in enumerate(targets)
    ]
    return EditData("captions", "test", samples)


@pytest.mark.parametrize(("words", "prompt", "target"), [
    (0, "a photo of", "a red  star"),
    (1, "a photo of a", "red  star"),
    (2, "a photo of a red", "star"),
])  # fmt: skip
def test_words_move_from_the_answer_to_the_prompt(words, prompt, target):
    (sample,) = lead(captions("a red  star"), words)
    assert (sample.request.prompt, sample.request.target) == (prompt, target)
    assert sample.id == "c-0"


def test_answers_that_are_too_short_are_set_aside_by_name():
    made = lead(captions("a star", "star", ""), 1)
    assert [s.request.target for s in made] == ["star"]
    assert [q.row for q in made.quarantined] == [1, 2]
    assert "'star' has no word behind the first 1" in str(made.quarantined[0])
    assert made.provenance["lead"] == 1


def test_scenes_are_led_from_the_command_line():
    options = ContributionOptions(data="scenes-captions", split="test", limit=2, lead=1)
    plain = data.load("scenes-captions", split="test", limit=2)
    for led, sample in zip(load_data(options), plain, strict=True):
        whole = f"{sample.request.prompt} {sample.request.target}"
        assert f"{led.request.prompt} {led.request.target}" == whole
        assert led.request.prompt != sample.request.prompt
        assert led.request.image.tobytes() == sample.request.image.tobytes()


def test_an_edit_is_judged_by_its_whole_answer():
    with pytest.raises(ValueError, match="leave --lead out"):
        EvaluateOptions(lead=1)

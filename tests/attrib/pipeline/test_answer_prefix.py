"""The first words of an answer move to the end of the prompt."""

import pytest

from attrib import data
from attrib.cli.evaluate import EvaluateOptions
from attrib.data import EditData, EditRequest, EditSample
from attrib.pipeline.options import AnalysisOptions
from attrib.pipeline.source import add_answer_prefix, load_samples, shared_prefix_length


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
    (sample,) = add_answer_prefix(captions("a red  star"), words)
    assert (sample.request.prompt, sample.request.target) == (prompt, target)
    assert sample.id == "c-0"


def test_answers_that_are_too_short_are_quarantined():
    made = add_answer_prefix(captions("a star", "star", ""), 1)
    assert [s.request.target for s in made] == ["star"]
    assert [q.row for q in made.quarantined] == [1, 2]
    assert "'star' has no word after the first 1" in str(made.quarantined[0])
    assert made.provenance["answer_prefix"] == 1


def test_the_option_moves_words_of_captions_to_the_prompt():
    options = AnalysisOptions(data="scenes-captions", split="test", limit=2, lead=1)
    plain = data.load("scenes-captions", split="test", limit=2)
    for led, sample in zip(load_samples(options), plain, strict=True):
        whole = f"{sample.request.prompt} {sample.request.target}"
        assert f"{led.request.prompt} {led.request.target}" == whole
        assert led.request.prompt != sample.request.prompt
        assert led.request.image.tobytes() == sample.request.image.tobytes()


def test_edits_are_evaluated_on_the_whole_answer():
    with pytest.raises(ValueError, match="answer_prefix"):
        EvaluateOptions(answer_prefix=1)


@pytest.mark.parametrize(("targets", "words"), [
    (["a red star", "a blue ring"] * 5 + ["an orange ring"], 1),
    (["a red star", "a red ring"] * 5, 2),
    (["a red star", "the blue ring"] * 5, 0),  # half is not most
    (["yes"] * 9 + ["no"], 0),  # the word is the answer
    (["a red star"] * 9, 0),  # too few to tell
    ([], 0),
])  # fmt: skip
def test_the_prefix_that_most_answers_share_is_found(targets, words):
    assert shared_prefix_length(captions(*targets)) == words


def test_analyses_of_captions_read_the_word_after_the_article_by_default():
    options = {"data": "scenes-captions", "split": "test", "limit": 12}
    told = load_samples(AnalysisOptions(**options, lead=0))
    led, plain = (next(iter(some)) for some in (load_samples(AnalysisOptions(**options)), told))
    assert led.request.prompt == f"{plain.request.prompt} {plain.request.target.split()[0]}"
    answers = load_samples(AnalysisOptions(**{**options, "data": "scenes-vqa"}))
    assert "answer_prefix" not in answers.provenance

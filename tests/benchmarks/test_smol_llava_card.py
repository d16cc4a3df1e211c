"""Pieces of the measurement of smol-llava: kept, resumed, summed up; the common facts."""

import pytest

from attrib.zoo.text_questions import trained_questions
from benchmarks.smol_llava import pieces as module
from benchmarks.smol_llava.pieces import Pieces, measure
from benchmarks.smol_llava.scores import layer_scores, shares, text_scores
from benchmarks.smol_llava.subject import Subject, contains


@pytest.fixture
def subject(monkeypatch):
    """No model: each part notes what it is asked for."""
    asked = []

    def fake(part, columns):
        def run(_subject, rows):
            asked.append((part, rows.start))
            return {name: [value(i) for i in rows] for name, value in columns.items()}

        return run

    parts = {
        "vqa": {"hit": lambda i: i % 4 > 0, "kind": lambda i: ("color", "shape")[i % 2]},
        "layers": {"lens": lambda i: [i % 2, 1.0], "patch": lambda _: [None, None]},
    }
    made = {name: fake(name, columns) for name, columns in parts.items()}
    monkeypatch.setattr(module, "PARTS", made)
    return Subject(None, None, None, count=60, curve_count=20), asked


def test_an_interrupted_measurement_goes_on_where_it_stopped(subject, tmp_path):
    s, asked = subject
    file = tmp_path / "new" / "pieces.jsonl"
    while not measure(s, kept := Pieces(file, "one"), ["vqa", "layers"], seconds=0):
        part, rows = next(module.missing(s, kept, ["vqa", "layers"]))
        kept.add(part, rows.start, module.PARTS[part](s, rows))
    assert asked == [("vqa", k) for k in (0, 25, 50)] + [("layers", k) for k in (0, 5, 10, 15)]
    pieces = Pieces(file, "one")
    assert Pieces(file, "another model").found == {}
    assert pieces.column("vqa", "hit") == [i % 4 > 0 for i in range(60)]
    assert measure(s, pieces, ["vqa", "layers"], 9.0) and len(asked) == 7  # nothing is left
    for part, column in (("other", "hit"), ("caption", "tokens"), ("caption", "exact")):
        pieces.found.setdefault(part, {}).setdefault(0, {})[column] = [1.0, 0.0]
    pieces.found["fact"] = pieces.found["other"]
    scores = shares(pieces)
    assert scores["vqa"] == (0.75, 60) and scores["vqa/shape"] == (1.0, 30)
    curves = layer_scores(pieces)
    first, last = curves["lens"]
    assert first["low"] < first["mean"] == 0.5 < first["high"] and last["low"] == last["high"] == 1
    assert first["count"] == 20 and curves["patch"][0]["count"] == 0


def test_only_what_the_plain_model_knows_counts_as_still_known():
    piece = {"known": [True, True, False], "still": [True, False, True], "agree": [1.0, 0.5, 0.0],
             "same": [True, False, False], "kl": [0.0, 0.1, 0.2]}  # fmt: skip
    pieces = Pieces.__new__(Pieces)
    pieces.found = {"common": {0: piece}}
    scores = text_scores(pieces, "common")
    assert (scores["questions"], scores["known"], scores["still"]) == (3, 2, 1)
    assert scores["agree"]["mean"] == 0.5 and scores["kl"]["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "least"), [("common", 250), ("everyday", 130)])
def test_no_question_is_asked_twice_or_answers_itself(name, least):
    asked = getattr(Subject(None, None, None), name)
    assert len({question for _, question, _ in asked}) == len(asked) > least
    assert not [q for _, q, answer in asked if contains(q, answer)]


def test_no_question_of_training_is_of_a_kind_that_is_scored():
    trained = {q.text for q in trained_questions()}
    assert len(trained) == len(trained_questions()) > 300
    subject = Subject(None, None, None)
    starts = [text.split() for text in sorted(trained)]
    for _, question, _ in subject.common + subject.everyday:
        assert question not in trained
        assert question.split()[:4] not in [
            words[:4] for words in starts if words[:2] != ["What", "is"]
        ]
    kinds = ("capital", "continent", "symbol", "opposite", "plural", "currency", "past tense")
    assert not [text for text in trained if any(kind in text for kind in kinds)]

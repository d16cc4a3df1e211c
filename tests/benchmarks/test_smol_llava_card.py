"""Pieces of the measurement of smol-llava: kept, resumed, summed up; the common facts."""

import pytest

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
    while not measure(s, Pieces(file), ["vqa", "layers"], seconds=0):
        Pieces(file).add(*next((p, r.start, module.PARTS[p](s, r)) for p, r in
                               module.missing(s, Pieces(file), ["vqa", "layers"])))  # fmt: skip
    assert asked == [("vqa", k) for k in (0, 25, 50)] + [("layers", k) for k in (0, 5, 10, 15)]
    pieces = Pieces(file)
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


def test_no_common_fact_is_asked_twice_or_answers_itself():
    asked = Subject(None, None, None).common
    assert len({question for _, question, _ in asked}) == len(asked) > 250
    assert not [q for _, q, answer in asked if contains(q, answer)]

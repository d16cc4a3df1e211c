"""Fluency and peak memory: worked by hand, and as columns of the costs."""

import math

import pytest
import torch
from conftest import tiny_vlm
from planted_editors import Says, sample

from attrib.forward.peak_memory import peak_bytes
from editors.evaluation import evaluate
from editors.evaluation.extra_costs import ExtraCosts
from editors.evaluation.fluency import ngram_entropy, repetition
from editors.evaluation.tables import costs


def test_entropy_and_repetition_by_hand():
    assert ngram_entropy("a b c d") == pytest.approx(2 / 3 * math.log2(3) + 4 / 3 * 1)
    assert ngram_entropy("a a a a a") == 0 and ngram_entropy("a") == 0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)  # one of four trigrams came before
    assert repetition("a a a a") == 0.5 and repetition("a b") == 0


def test_peak_memory_is_that_of_what_lives_at_once():
    size = 4 * 1000

    def run():
        one = torch.zeros(1000)
        del one
        two, three = torch.zeros(1000), torch.zeros(1000)
        return len(two) + len(three)

    assert 2 * size <= peak_bytes(run, "cpu") < 3 * size


def test_an_editor_that_repeats_one_word_shows_in_the_columns():
    vlm, extra = tiny_vlm("llava"), ExtraCosts(fluency=60, peak=True)
    result = evaluate(vlm, Says("red"), [sample(0), sample(1)], ("paper",), extra=extra)
    (row,) = costs([result]).to_dict("records")
    assert row["repetition_after"] > 0.5 and row["entropy_after"] == pytest.approx(0, abs=0.1)
    assert {"entropy_before", "repetition_before"} <= set(row)
    assert row["peak_bytes"] >= row["bytes"] > 0  # the edit is part of what making it allocates
    plain = costs([evaluate(vlm, Says("red"), [sample(0)], ("paper",))])
    assert "peak_bytes" not in plain and "entropy_after" not in plain

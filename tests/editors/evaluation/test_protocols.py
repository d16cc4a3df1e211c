"""Protocols: their identities on random answers, and small cases worked by hand."""

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from planted_editors import HARD_TYPES, sample

from attrib.analyses.gating import related
from attrib.data.rows import typed_hard_locality
from attrib.model.forced_pass import without_target
from editors.evaluation.metrics import means
from editors.evaluation.probes import best_tokens, probes_of
from editors.evaluation.protocols import (
    GOLD,
    PROTOCOLS,
    Answer,
    begins_with_target,
    judge,
)
from editors.gating.features import related_inputs

LOCALITY = ("t_loc", "m_loc", "same_image_same_kind")
tokens = st.lists(st.integers(0, 3), min_size=5, max_size=5)


def answer(gold, forced, text="red", best=None):
    best = [[token, *range(10, 19)] for token in forced] if best is None else best
    return Answer("red", torch.tensor(gold), torch.tensor(forced), torch.tensor(best), text)


@pytest.mark.parametrize("meta", [{"hard_types": HARD_TYPES}, {}])
def test_scores_gates_and_analyses_call_a_hard_input_the_same(meta):
    edit = sample(meta=meta)
    named = typed_hard_locality(edit)
    assert len(named) == len(edit.hard_locality)
    assert named == [
        (p.metric, p.request) for p in probes_of(edit) if p.request in edit.hard_locality
    ]
    for found in (related_inputs([edit]), related([edit])):
        assert named == [(one.relation, one.request) for one in found][-len(named) :]


@given(tokens, tokens, tokens)
def test_exact_is_at_most_paper_and_is_all_of_it_or_nothing(gold, old, new):
    before, after = answer(gold, old), answer(gold, new)
    for metric in (*GOLD, *LOCALITY):
        paper, exact = (judge(protocol, metric, before, after) for protocol in ("paper", "exact"))
        assert exact == (paper == 1) and exact <= paper


@given(tokens, tokens, tokens)
def test_locality_asks_the_unedited_model_and_the_others_the_target(gold, old, new):
    same, after = answer(gold, old), answer(gold, new)
    shares = {
        "gold": sum(map(int.__eq__, new, gold)) / 5,
        "old": sum(map(int.__eq__, new, old)) / 5,
    }
    for metric in LOCALITY:
        assert judge("paper", metric, same, after) == pytest.approx(shares["old"])
        assert all(judge(protocol, metric, after, after) == 1 for protocol in PROTOCOLS)
    for metric in GOLD:
        assert judge("paper", metric, same, after) == pytest.approx(shares["gold"])


def test_easyedit_sees_runners_up_and_positions_of_the_prompt():
    ranked = [[0, *range(10, 19)], [1, *range(10, 19)]]
    swapped = [[0, 11, 10, *range(12, 19)], [1, *range(10, 19)]]
    elsewhere = [[7, *range(10, 19)], [1, *range(10, 19)]]
    before = answer([1], [1], best=ranked)
    runners_up, prompt = (answer([1], [1], best=best) for best in (swapped, elsewhere))
    assert judge("paper", "m_loc", before, runners_up) == 1
    assert judge("easyedit", "m_loc", before, runners_up) == pytest.approx(18 / 20)
    assert judge("easyedit", "t_loc", before, runners_up) == 1  # it looks at the first alone
    assert judge("easyedit", "t_loc", before, prompt) == 0.5
    assert judge("easyedit", "rel", before, answer([1, 2], [1, 3])) == 0


@pytest.mark.parametrize(
    ("said", "target", "right"),
    [
        ("red", "red", True),
        ("Red.", "red", True),
        ("red and blue", "red", True),
        ("red, and blue", "red", True),
        ("red\n\nQuestion", "red", True),
        ("reddish", "red", False),
        ("20", "2", False),
        ("2.5", "2", False),
        ("top-left", "top", False),
        ("top left", "top left", True),
        ("the red", "red", False),
        ("", "red", False),
        ("u.s. is", "U.S.", True),
        ("c++ is", "C++", True),
        ("?!", "?", True),
        ("red", "?", False),
    ],
)
def test_what_an_answer_says(said, target, right):
    assert begins_with_target(said, target) is right


@pytest.mark.parametrize("goes_on", [" and blue", ", red", "\n\nQuestion", " red"])
def test_generate_judges_the_whole_answer_and_generate_prefix_its_beginning(goes_on):
    old = answer([0], [0], "blue")
    for said, whole in (("Red.", 1), (f"red{goes_on}", 0), ("reddish", 0)):
        new = answer([0], [0], said)
        assert judge("generate", "rel", old, new) == whole
        assert judge("generate-prefix", "rel", old, new) == (said != "reddish")
        # Locality is about the whole text in both.
        same = float(said == "Red.")
        for protocol in ("generate", "generate-prefix"):
            assert judge(protocol, "m_loc", answer([0], [0], "red"), new) == same


def test_locality_by_generation_is_about_the_whole_text():
    before, goes_on = answer([0], [0], "red"), answer([0], [0], "red and blue")
    assert judge("generate", "m_loc", before, goes_on) == 0
    assert judge("generate", "m_loc", before, answer([0], [0], "Red.")) == 1


def test_a_position_without_numbers_is_never_right():
    logits = torch.zeros(3, 20)
    logits[0, 4], logits[1, 5], logits[2, 4], logits[2, 9] = 1, 1, 1, float("nan")
    assert best_tokens(logits, 1).tolist() == [[4], [5], [-1]]
    assert best_tokens(logits, 10)[:, 0].tolist() == [4, 5, -1]


def test_averages_are_of_all_five_and_of_each_input_alike():
    five = {"rel": [1.0], "t_gen": [0.5], "v_gen": [0.0, 1.0], "t_loc": [1.0], "m_loc": [1.0]}
    hard = {"same_image_same_kind": [0.0], "same_image_other_kind": [1.0, 1.0]}
    found = means(five | hard)
    assert found["avg"] == pytest.approx((1 + 0.5 + 0.5 + 1 + 1) / 5)
    assert found["same_image"] == pytest.approx(2 / 3)
    assert "avg" not in means({"rel": [1.0]}) and "same_image" not in means(five)


def test_prompts_cut_from_targets_are_the_prompts(different_vlm):
    images, prompts = examples(3)
    forced = different_vlm.encode(images, prompts, ["red", "a long one", "x"])
    alone, cut = different_vlm.encode(images, prompts), without_target(different_vlm, forced)
    assert cut.inputs.keys() == alone.inputs.keys() and cut.labels is None
    for name, value in alone.inputs.items():
        assert torch.equal(cut.inputs[name], value), name
    assert all(torch.equal(cut[span], alone[span]) for span in ("visual", "text", "last"))

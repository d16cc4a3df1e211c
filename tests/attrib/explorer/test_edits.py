"""Before and after an edit: both sides, the gate's decision, other questions."""

import numpy as np
import torch
from explored import OTHERS, QUESTION, edit, paired, scene, stored_numbers, tiny

import attrib
from attrib.explorer.observe import observe
from editors.base import WeightEdit
from editors.context import PromptEdit


def test_the_first_side_is_the_plain_model_and_the_second_is_the_edited_one():
    before, after = paired().sides
    plain = observe(tiny(), before.batch, max_new_tokens=3)
    for name in ("paper", "attention", "heat", "lens", "key_p"):
        assert np.array_equal(getattr(before, name), getattr(plain, name))
    batch = tiny().encode([scene()], [QUESTION])
    with edit().applied(tiny()):
        assert [after.text] == tiny().generate(batch, 3)
        edited = tiny().last_logits(batch)[0].softmax(-1)
    np.testing.assert_allclose(after.key_p[after.first_answer, -1], edited.max(), rtol=1e-4)
    assert not np.allclose(before.attention, after.attention[:, :, : before.attention.shape[2]])


def test_contributions_of_an_edited_model_add_up_with_the_edits_own_writes():
    _, after = paired().sides
    assert not after.note
    i = after.first_answer
    batch = tiny().encode([scene()], [QUESTION])
    with edit().applied(tiny()):
        logit = tiny().last_logits(batch)[0, after.answer[0]]
    np.testing.assert_allclose(after.shares[i].sum() + after.constants[i].sum(), logit, rtol=1e-3)


def test_the_gate_opens_for_the_edited_question_and_others_are_unchanged():
    own, *others = paired().asked
    assert own.decision.opens and own.decision.score > 0.9999 and own.edited
    assert own.divergence > 0
    for other, prompt in zip(others, OTHERS, strict=True):
        assert other.prompt == prompt and not other.decision.opens
        assert not other.changed and other.divergence == 0 and not other.edited
    stored = stored_numbers(paired().html)["asked"]
    assert stored[0]["gate"]["open"] and stored[0]["gate"]["threshold"] == 0.999


def test_an_edit_of_weights_leaks_and_the_page_says_so():
    name, head = next((n, p) for n, p in tiny().model.named_parameters() if "layers.5.mlp" in n)
    moved = WeightEdit({name: head.data + 0.5 * torch.ones_like(head)})
    page = attrib.explore(tiny(), scene(), QUESTION, edit=moved, also=OTHERS[:1], max_new_tokens=2)
    assert page.asked[1].decision is None and page.asked[1].divergence > 0
    assert not page.sides[1].note and np.isfinite(page.sides[1].shares).all()
    assert [side["label"] for side in page.data["sides"]] == ["before the edit", "after the edit"]


def test_two_models_are_compared():
    page = attrib.explore(tiny(), scene(), QUESTION, compare=tiny(), also=OTHERS[1:])
    assert [one.changed for one in page.asked] == [False, False] and len(page.sides) == 2
    assert page.asked[0].divergence == 0


def test_text_that_an_edit_puts_into_the_prompt_is_part_of_what_is_observed():
    told = PromptEdit(("The shape is a star.",))
    batch = tiny().encode([scene()], [QUESTION])
    before, after = (observe(tiny(), batch, edit=one, max_new_tokens=3) for one in (None, told))
    with told.applied(tiny()):
        assert [after.text] == tiny().generate(batch, 3)
        logits = tiny().last_logits(batch)[0]
    i, num = after.first_answer, len(after.ids) - len(before.ids)
    assert num > 4 and [w for w in before.ids if w in after.ids]  # the question is still there
    assert len(after.places("visual")) == len(before.places("visual"))
    np.testing.assert_allclose(after.key_p[i, -1], logits.softmax(-1).max(), rtol=1e-4)
    total = after.shares[i].sum() + after.constants[i].sum()
    np.testing.assert_allclose(total, logits[after.answer[0]], rtol=1e-3)
    again = observe(tiny(), batch, max_new_tokens=3)
    assert again.ids == before.ids  # nothing of the edit is left
    page = attrib.explore(tiny(), scene(), QUESTION, edit=told, max_new_tokens=2)
    assert [side["label"] for side in page.data["sides"]] == ["before the edit", "after the edit"]

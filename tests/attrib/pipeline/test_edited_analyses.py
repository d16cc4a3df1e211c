"""Analyses of an edited model: the edited numbers, the plain ones where the gate stays closed."""

import numpy as np
import pytest
import torch
from conftest import examples, tiny_vlm
from explored import OTHERS, QUESTION, edit, scene, tiny

import attrib
from attrib.analyses.sensitivity import sensitivity
from attrib.analyses.sensitivity_passes import sensitivity_by_passes
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.pipeline.edited import run_edited, side_by_side
from attrib.pipeline.run import make_analysis
from attrib.pipeline.source import as_data
from editors.base import WeightEdit

ANALYSES = {
    "contributions": {"norm": "frozen"},
    "heatmap": {"noise": 0.1},
    "attention": {},
    "sweep": {"sigmas": "0.5"},
    "deletion": {},
}
TWO = {"sigmas": "0.1,0.5"}


def both(name, prompt, applied, given=None):
    """The results before and after an edit."""
    given = given or ANALYSES[name]
    data = as_data([EditSample("photo", EditRequest(scene(), prompt, ""))])
    analysis = make_analysis(name, given)
    before = attrib.run(name, tiny(), data, **given)
    return before, run_edited(analysis, tiny(), data, applied)


def moved():
    """An edit of weights in a late layer."""
    name, weight = next((n, p) for n, p in tiny().model.named_parameters() if "layers.5.mlp" in n)
    return WeightEdit({name: weight.data + 0.5 * torch.ones_like(weight)})


@pytest.mark.parametrize("name", ANALYSES)
def test_an_open_gate_changes_the_numbers_and_a_closed_one_does_not(name):
    before, after = both(name, QUESTION, edit())
    assert after.frame.columns.equals(before.frame.columns)
    assert not np.allclose(before.frame["value"], after.frame["value"], equal_nan=True)
    before, closed = both(name, OTHERS[0], edit())
    tolerance = {"rtol": 1e-3, "atol": 1e-6} if name == "sweep" else {"rtol": 0, "atol": 0}
    values = (one.frame["value"].to_numpy() for one in (before, closed))
    np.testing.assert_allclose(*values, **tolerance)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_edit_of_weights_is_the_model_with_those_weights(name):
    before, after = both(name, QUESTION, moved())
    with moved().applied(tiny()):
        plain = attrib.run(name, tiny(), list(before.samples), **ANALYSES[name])
    assert after.frame["value"].equals(plain.frame["value"])
    assert not after.frame["value"].equals(before.frame["value"])


def test_edited_contributions_and_the_edit_s_own_writes_are_the_edited_logit():
    _, after = both("contributions", QUESTION, edit())
    batch = tiny().encode([scene()], [QUESTION]).named(["photo"])
    with edit().applied(tiny()):
        parts = attrib.direct_logits(tiny(), batch)
        logit = tiny().last_logits(batch).max()
    torch.testing.assert_close(parts.total[0], logit, rtol=1e-4, atol=1e-4)
    assert after.frame["value"].sum() == pytest.approx(parts.modules.sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
@pytest.mark.parametrize("modality", ["text", "visual", "both"])
def test_whole_passes_have_the_values_of_the_shorter_way(name, modality):
    vlm = tiny_vlm(name)
    images, prompts = examples()
    batch = vlm.encode(images[:2], prompts[:2]).named(["a", "b"])
    given = {"modality": modality, "sigmas": (0.0, 0.5), "draws": 2, "layers": [0, 2], "seed": 3}
    torch.testing.assert_close(
        sensitivity_by_passes(vlm, batch, **given), sensitivity(vlm, batch, **given),
        rtol=1e-3, atol=1e-5, equal_nan=True,
    )  # fmt: skip


def test_an_edit_in_the_prompt_is_refused():
    class InFront:
        def applied(self, vlm):
            return vlm.rewrite_prompts(lambda batch: batch)

    with pytest.raises(AttribError, match="rewrites the prompt"):
        both("attention", QUESTION, InFront())


def test_numbers_stand_side_by_side_by_layer():
    before, after = both("attention", QUESTION, edit())
    table = side_by_side(before, after, ["visual_sum"])
    assert list(table.columns) == ["visual_sum before", "visual_sum after"]
    wanted = after.where(statistic="visual_sum").frame.set_index("layer")["value"]
    assert np.allclose(table["visual_sum after"], wanted)
    before, after = both("contributions", QUESTION, edit())
    assert list(side_by_side(before, after).columns) == [
        "attn before", "attn after", "mlp before", "mlp after",
    ]  # fmt: skip


def test_each_size_of_the_noise_has_columns_of_its_own():
    before, after = both("sweep", QUESTION, edit(), TWO)
    table = side_by_side(before, after)
    assert list(table.columns) == [
        "sigma 0.1 before", "sigma 0.1 after", "sigma 0.5 before", "sigma 0.5 after",
    ]  # fmt: skip
    for sigma in (0.1, 0.5):
        wanted = after.where(sigma=sigma).frame.groupby("layer")["value"].mean()
        assert np.allclose(table[f"sigma {sigma} after"], wanted)


def test_sizes_of_noise_are_sorted_as_numbers():
    before, after = both("sweep", QUESTION, edit(), {"sigmas": "10,0.5,2"})
    headings = [f"sigma {s} {side}" for s in ("0.5", "2", "10") for side in ("before", "after")]
    assert list(side_by_side(before, after).columns) == headings

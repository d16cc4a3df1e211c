"""Attention profiles: rows are the model's own, statistics those of rows we planted."""

from dataclasses import replace

import pytest
import torch
from conftest import examples
from torch.testing import assert_close

from attrib import plots
from attrib.analyses.attention import STATISTICS, attention, attention_table, profile
from attrib.data import EditRequest, EditSample
from attrib.model.batch import Batch, Picture
from attrib.results import Result


def planted_batch(visual=(1, 2, 3, 4), bos=(0,), size=2):
    """BOS, visual and text tokens; position 8 is padding."""

    def mask(positions):
        at = torch.zeros(size, 9, dtype=torch.bool)
        at[:, list(positions)] = True
        return at

    spans = {"visual": mask(visual), "text": mask([5, 6, 7]), "last": mask([7])}
    return Batch({}, spans | ({"bos": mask(bos)} if bos else {}))


def column(values, name):
    return values[..., STATISTICS.index(name)]


ROW = torch.tensor([0.40, 0.02, 0.20, 0.04, 0.06, 0.08, 0.12, 0.08, 0.0])
OTHER = torch.tensor([0.10, 0.30, 0.00, 0.10, 0.20, 0.10, 0.10, 0.10, 0.0])


@pytest.fixture
def rows():
    """Two examples, two layers; the second example has its layers the other way round."""
    return torch.stack([torch.stack([ROW, OTHER]), torch.stack([OTHER, ROW])])


def test_statistics_of_planted_rows(rows):
    values = profile(rows, planted_batch())
    expected = {
        "text_mean": 0.28 / 3, "text_sum": 0.28, "visual_mean": 0.08, "visual_sum": 0.32,
        "visual_top3": 0.10, "bos": 0.40,
    }  # fmt: skip
    assert values.shape == (2, 2, len(STATISTICS))
    for name, value in expected.items():
        assert_close(column(values, name)[0, 0], torch.tensor(value))
        assert_close(column(values, name)[1, 1], torch.tensor(value))


def test_the_three_most_attended_tokens_are_chosen_per_layer(rows):
    top = column(profile(rows, planted_batch()), "visual_top3")
    assert_close(top[0], torch.tensor([(0.20 + 0.06 + 0.04) / 3, (0.30 + 0.20 + 0.10) / 3]))


def test_the_top_of_two_visual_tokens_is_their_mean(rows):
    values = profile(rows, planted_batch(visual=(1, 2)))
    assert_close(column(values, "visual_top3"), column(values, "visual_mean"))


def test_each_of_several_pictures_has_statistics_of_its_own(rows):
    pictures = (
        (Picture(slice(0, 1), None), Picture(slice(1, 4), None)),
        (Picture(slice(0, 4), None),),
    )
    batch = replace(planted_batch(), pictures=pictures)
    samples = [EditSample(name, EditRequest(None, "x", "y")) for name in "ab"]
    table = attention_table(rows, batch, samples)
    own = table[(table["example"] == "a") & (table["layer"] == 0)].set_index("statistic")["value"]
    assert own["visual_sum[0]"] == pytest.approx(0.02) == own["visual_mean[0]"]
    assert own["visual_sum[1]"] == pytest.approx(0.30) == 3 * own["visual_mean[1]"]
    assert own["visual_sum[0]"] + own["visual_sum[1]"] == pytest.approx(own["visual_sum"])
    assert set(table[table["example"] == "b"]["statistic"]) == set(STATISTICS)  # one picture
    curves = plots.attention(Result("attention", table, {}), quantity="share").get_lines()
    assert [line.get_label() for line in curves][-2:] == ["image 1", "image 2"]


def test_attention_to_bos_is_not_attention_to_text(rows):
    sunk = rows.clone()
    sunk[..., 0] = 0.9
    before, after = (profile(r, planted_batch()) for r in (rows, sunk))
    assert torch.equal(column(before, "text_mean"), column(after, "text_mean"))
    assert not torch.equal(column(before, "bos"), column(after, "bos"))


def test_kinds_of_token_that_an_example_lacks_are_nan(rows):
    values = profile(rows, planted_batch(visual=(), bos=()))
    for name in ("visual_mean", "visual_sum", "visual_top3", "bos"):
        assert column(values, name).isnan().all()
    assert column(values, "text_sum").isfinite().all()


def test_padding_gets_no_attention(rows):
    values = profile(rows, planted_batch())
    whole = sum(column(values, name) for name in ("text_sum", "visual_sum", "bos"))
    assert_close(whole, rows.sum(-1))


def test_rows_sum_to_one(different_vlm):
    batch = different_vlm.encode(*examples(), padding_side="left")
    rows = attention(different_vlm, batch)
    assert rows.shape == (3, different_vlm.num_layers, batch["last"].shape[1])
    assert_close(rows.sum(-1), torch.ones(3, different_vlm.num_layers))
    hidden = ~batch.inputs["attention_mask"].bool()
    assert hidden.any() and (rows.transpose(1, 2)[hidden] == 0).all()


def test_rows_are_those_of_eager_attention(vlm, batch):
    rows = attention(vlm, batch)
    vlm.model.set_attn_implementation("eager")
    try:
        out = vlm.model(**batch.inputs, output_attentions=True, use_cache=False)
    finally:
        vlm.model.set_attn_implementation("sdpa")
    layers = getattr(out, "language_model_outputs", out).attentions
    for layer, weights in enumerate(layers):
        own = weights.mean(1)[batch["last"]]
        assert_close(rows[:, layer], own, atol=1e-5, rtol=1e-4)


def test_profiles_do_not_depend_on_the_batch(vlm):
    images, prompts = examples(4)
    batch = vlm.encode(images, prompts)
    together = profile(attention(vlm, batch), batch)
    for i in range(4):
        one = vlm.encode([images[i]], [prompts[i]])
        alone = profile(attention(vlm, one), one)
        assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4, equal_nan=True)


def test_text_alone_has_no_visual_profile(vlm):
    batch = vlm.encode([None], ["Two and two is"])
    values = profile(attention(vlm, batch), batch)
    assert column(values, "visual_sum").isnan().all()
    assert_close(column(values, "text_sum") + column(values, "bos"), torch.ones(1, vlm.num_layers))

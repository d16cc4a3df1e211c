"""The numbers on the page are those of the analyses, and the page is small and inert."""

import gzip
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from explored import EVIL, explored, stored_numbers

import attrib
from attrib.errors import AttribError
from attrib.explorer import payload
from attrib.model.continuation import continued

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=["answer", "later"])
def query(request):
    """One seen query, and the batch that ends at it: the first generated token, and a later one."""
    page = explored()
    seen = page.sides[0]
    step = 0 if request.param == "answer" else len(seen.answer) - 1
    return seen, step, continued(seen.vlm, seen.batch, seen.answer[:step])


def at_query(seen, batch):
    """The batch whose last prompt token is the query."""
    ids = batch.inputs | {}
    wider = seen.vlm.batch(ids)
    from dataclasses import replace

    return replace(wider, pictures=seen.batch.pictures, ids=seen.batch.ids)


def test_contributions_attention_and_heatmaps_are_the_analyses(query):
    seen, step, batch = query
    vlm, i = seen.vlm, seen.first_answer + step
    alone, key = at_query(seen, batch), torch.tensor([seen.answer[step]])
    for norm, ours in (("none", seen.paper), ("frozen", seen.shares)):
        theirs = attrib.contributions(vlm, alone, key, norm)[0]
        np.testing.assert_allclose(ours[i], theirs, **TOLERANCE)
    rows = attrib.attention(vlm, alone)[0].numpy()
    np.testing.assert_allclose(seen.attention[i, :, : rows.shape[1]], rows, **TOLERANCE)
    assert not seen.attention[i, :, rows.shape[1] :].any()  # later tokens are not seen
    if step < len(seen.heat):
        maps = attrib.heatmaps(vlm, alone, noise=0.1)[0].numpy()
        np.testing.assert_allclose(seen.heat[step], maps, rtol=2e-3, atol=1e-7)


def test_the_lens_is_that_of_all_positions_and_ends_with_the_models_prediction(query):
    seen, step, batch = query
    i, place = seen.first_answer + step, seen.queries[seen.first_answer + step]
    lens = attrib.logit_lens(seen.vlm, batch)
    assert (seen.lens[i] == lens.tokens[0, :, place].numpy()).all()
    np.testing.assert_allclose(seen.lens_p[i], lens.probabilities[0, :, place], **TOLERANCE)
    probabilities = seen.vlm.last_logits(at_query(seen, batch))[0].softmax(-1)
    assert seen.lens[i, -1, 0] == probabilities.argmax() == seen.answer[step]
    np.testing.assert_allclose(seen.key_p[i, -1], probabilities.max(), **TOLERANCE)
    visual = seen.batch["visual"][0].nonzero()[:, 0]
    assert (seen.visual_lens == lens.tokens[0][:, visual, 0].numpy()).all()


def test_shares_add_up_to_the_logit(query):
    seen, step, batch = query
    i = seen.first_answer + step
    logit = seen.vlm.last_logits(at_query(seen, batch))[0, seen.answer[step]]
    np.testing.assert_allclose(seen.shares[i].sum() + seen.constants[i].sum(), logit, rtol=1e-4)


def test_the_answer_is_the_generated_one_and_the_page_says_which_layer_decides():
    page = explored()
    seen, side = page.sides[0], page.data["sides"][0]
    assert seen.vlm.generate(seen.batch) == [seen.text]
    top = seen.lens[seen.first_answer, :, 0] == seen.answer[0]
    settles = side["settles"][seen.first_answer]
    assert top[settles:].all() and (settles == 0 or not top[settles - 1])
    said = " ".join(side["findings"][seen.first_answer])
    assert f"from layer {settles}" in said or "at the last layer" in said


def test_nearest_words_and_cosines_are_those_of_the_states():
    seen = explored().sides[0]
    full = continued(seen.vlm, seen.batch, seen.answer[:-1])
    with attrib.read(seen.vlm, [2]) as hidden:
        seen.vlm.logits(full)
    h = torch.nn.functional.normalize(hidden[2][0], dim=-1)
    visual = seen.batch["visual"][0].nonzero()[:, 0]
    cosines = h[visual] @ h[seen.words].T
    np.testing.assert_allclose(seen.cosine[2, :, 0], cosines.max(1).values, **TOLERANCE)
    assert (seen.nearest[2, :, 0] == cosines.argmax(1).numpy()).all()


def test_stored_numbers_are_the_seen_ones():
    page = explored()
    seen, side = page.sides[0], stored_numbers(page.html)["sides"][0]
    for name, exact in (("paper", seen.paper), ("shares", seen.shares), ("keyP", seen.key_p)):
        assert (decoded(side[name]) == exact.astype(np.float32)).all()
    assert len(side["vocabulary"]) == len(set(side["vocabulary"])) or EVIL
    lens = np.array(side["vocabulary"], object)[decoded(side["lens"])]
    own = seen.vlm.tokenizer.decode([seen.lens[0, 0, 0]]).strip()
    assert lens[0, 0, 0] == own or not own
    visual = seen.places("visual")
    for name, exact in (("attentionVisual", seen.attention[..., visual]), ("heat", seen.heat)):
        steps, largest = decoded(side[name]["steps"]), decoded(side[name]["largest"])
        values = largest[..., None] * (steps / payload.STEPS) ** 2
        assert (np.abs(values - exact) <= 0.004 * exact.max(-1, keepdims=True)).all()
        assert values.any()


def test_rows_without_values_stay_without_and_a_broken_map_is_noticed():
    values = np.array([[0.0, 1.0, 1e-4], [np.nan] * 3, [0.0] * 3])
    stored = payload.steps(values)
    largest = decoded(stored["largest"])
    assert np.isnan(largest[1]) and largest[2] == 0 and largest[0] == 1
    assert decoded(stored["steps"])[0].tolist() == [0, 255, 3]


def test_a_page_of_32_layers_and_576_visual_tokens_is_at_most_5_mb():
    random = np.random.default_rng(0)
    layers, visual, words, queries, answers = 32, 576, 80, 64, 16

    def maps(*shape):
        return payload.steps(random.exponential(size=shape))

    side = [
        maps(queries, layers, visual), maps(queries, layers, words), maps(answers, layers, visual),
        payload.array(random.normal(size=(queries, layers, 2, 2))),
        payload.array(random.integers(0, 9000, (queries, layers, 5))),
        payload.array(random.normal(size=(queries, layers, 6))),
        payload.array(random.integers(0, 9000, (layers, visual))), maps(layers, visual),
        payload.array(random.integers(0, 80, (layers, visual, 2))),
        payload.array(random.normal(size=(layers, visual, 2))),
        ["a token of some length"] * 9000,
    ]  # fmt: skip
    assert len(payload.packed(side)) < 5e6 - 4e5  # a photo and the script take less than 0.4 MB
    assert len(explored().html) < 6e5


def test_hostile_texts_are_inert_in_the_page():
    page = explored()
    html, data = page.html, stored_numbers(page.html)
    assert EVIL not in html and "<img src=x" not in html
    assert html.count("<script") == 2 and html.count("</script>") == 2
    assert "\\u202e" in data["prompt"] and "\u202e" not in json.dumps(data, ensure_ascii=False)
    addresses = re.sub(r"http://www\.w3\.org/2000/svg", "", html)
    assert "http:" not in addresses and "https:" not in addresses
    framed = page._repr_html_()
    assert framed.count("<") == 2 and 'sandbox="allow-scripts"' in framed


def test_text_alone_has_a_page_without_picture(tiny):
    page = attrib.explore(tiny, None, "What is the capital of France?", max_new_tokens=2)
    side = page.data["sides"][0]
    assert side["pictures"] == [] and page.sides[0].heat.shape[-1] == 0
    assert len(page.html) < 3e5


def test_an_edit_and_a_second_model_at_once_are_refused(tiny):
    with pytest.raises(AttribError, match="give one of them"):
        attrib.explore(tiny, None, "x", edit=object(), compare=tiny)


@pytest.fixture
def tiny():
    return explored().sides[0].vlm


def decoded(stored):
    kind = {"f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4"}[stored["type"]]
    return np.frombuffer(b64decode(stored["data"]), kind).reshape(stored["shape"])


def test_packed_data_can_be_read_again():
    data = {"text": "</script>\u2028", "n": [1, None]}
    assert json.loads(gzip.decompress(b64decode(payload.packed(data)))) == data

"""IKE: the context is what it is said to be, found by cosine; the model's weights stay."""

import logging
from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_vlm
from torch.nn.functional import normalize

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import read
from editors.context import max_positions, text_tokens
from editors.context.retrieval import SentenceEncoder, StatesEncoder, nearest, text_threshold
from editors.evaluation import evaluate
from editors.evaluation.reference_model import Checksum
from editors.methods.ike import IKE, context, demonstration, demonstrations

WORDS = ["sun", "moon", "tree", "cat", "sea", "hill"]


def samples(num=6):
    return [
        EditSample(
            id=f"edit-{i}",
            request=EditRequest(picture(seed=i), f"A {WORDS[i]}?", "blue"),
            text_generality=[EditRequest(picture(seed=i), f"See {WORDS[i]}?", "blue")],
            visual_generality=[EditRequest(picture(seed=50 + i), f"A {WORDS[i]}?", "blue")],
            text_locality=[EditRequest(None, "Who wrote?", "Emma")],
            visual_locality=[EditRequest(picture(seed=100 + i), "Where?", "top")],
        )
        for i in range(num)
    ]


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def ike(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("ike")
    return IKE.train(llava, samples(), out=out, demonstrations=3), out


@torch.no_grad()
def logits(vlm, request, edit=None, prompt=None):
    batch = vlm.encode([request.image], [prompt or request.prompt], [request.target])
    if edit is None:
        return vlm.logits(batch)[batch.labels != -100]
    with edit.applied(vlm):
        return vlm.logits(batch)[batch.labels != -100]


def test_an_edit_is_the_plain_model_asked_behind_the_context(llava, ike):
    request = samples()[2].request
    edit = ike[0].edit(llava, request)
    (text,) = edit.texts
    fact = "A tree? blue"
    assert text.endswith(f"New Fact: {fact}\nPrompt: {fact}\n\nNew Fact: {fact}\nPrompt: ")
    assert text.count("New Fact") == 3 + 2
    asked = EditRequest(picture(seed=9), "See tree?", "blue")
    written = logits(llava, asked, prompt=text + asked.prompt)
    assert torch.allclose(logits(llava, asked, edit), written, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(logits(llava, asked), written, atol=1e-2)


def test_weights_and_modules_stay_to_the_last_bit_and_so_do_scores_of_the_model(llava, ike):
    before = Checksum.of(llava.model)
    edit = ike[0].edit(llava, samples()[0].request)
    plain = logits(llava, samples()[1].request)
    with edit.applied(llava):
        assert not before.changes(Checksum.of(llava.model))
    assert torch.equal(logits(llava, samples()[1].request), plain)
    protocols = ("paper", "exact", "generate", "easyedit")
    result = evaluate(llava, ike[0], samples()[:1], protocols)
    assert set(result.frame["protocol"]) == {*protocols, "cost"}


@torch.no_grad()
def test_demonstrations_are_the_nearest_by_brute_force(llava, ike):
    editor = ike[0]

    def vector(text):
        batch = llava.encode([None], [text])
        with read(llava, [llava.num_layers // 2]) as hidden:
            llava.logits(batch)
        (h,) = hidden.values()
        return h[batch["text"]].mean(0)

    corpus = demonstrations(samples())
    assert list(editor.corpus) == corpus and len(corpus) == 18
    vectors = torch.stack([vector(text) for text in corpus])
    own = demonstration("A cat? blue", "A cat? blue")
    centre = vectors.mean(0)
    cosines = normalize(vectors - centre, dim=-1) @ normalize(vector(own) - centre, dim=-1)
    assert torch.allclose(editor.encoder([own]) @ editor.keys.T, cosines[None], atol=1e-4)
    expected = [corpus[i] for i in cosines.argsort(descending=True)[:3]]
    request = samples()[3].request
    assert editor.edit(llava, request).texts == (context(expected, request),)
    assert expected[0] == own  # the sample is in the corpus itself


def test_the_three_kinds_are_copy_update_and_retain():
    kinds = demonstrations(samples(1))
    assert kinds == [
        "New Fact: A sun? blue\nPrompt: A sun? blue\n\n",
        "New Fact: A sun? blue\nPrompt: See sun? blue\n\n",
        "New Fact: A sun? blue\nPrompt: Who wrote? Emma\n\n",
    ]


def test_what_does_not_fit_is_left_out_from_the_least_similar_on(llava, ike):
    request = samples()[2].request
    config = ike[0].config.changed(demonstrations=18, room=100)
    editor = replace(ike[0], config=config)
    edit = editor.edit(llava, request)
    shown = edit.texts[0].count("New Fact") - 2
    (order,) = nearest(ike[0].encoder([ike[0].corpus[6]]), ike[0].keys, shown + 1).tolist()
    corpus = [ike[0].corpus[i] for i in order]
    assert edit.texts == (context(corpus[:-1], request),)
    own = llava.encode([request.image], [request.prompt], [request.target])["last"].shape[1]

    def length(some):
        return own + 100 + len(text_tokens(llava, context(some, request)))

    assert length(corpus[:-1]) <= max_positions(llava) < length(corpus)


def test_training_says_how_many_demonstrations_fit(llava, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("attrib"), "propagate", True)
    IKE.train(llava, samples(), out=tmp_path, demonstrations=2)
    assert "fit the positions" not in caplog.text
    marked = EditSample("marked", EditRequest(None, "an <image>?", "blue"))
    IKE.train(llava, [marked, *samples()], out=tmp_path, demonstrations=32)
    assert "marked is set aside: request: prompt contains '<image>'" in caplog.text
    assert "of 18 demonstrations fit the positions of llava" in caplog.text


def test_of_several_edits_the_one_with_the_most_similar_prompt_is_shown(llava, ike):
    editor = ike[0]
    edits = [editor.edit(llava, s.request) for s in samples()[:3]]
    both = editor.merge(edits)
    assert both.num_bytes > sum(edit.num_bytes for edit in edits)
    for sample, edit in zip(samples()[:3], edits, strict=True):
        alone = logits(llava, sample.request, edit)
        assert torch.allclose(logits(llava, sample.request, both), alone, atol=1e-4)
    other = logits(llava, samples()[0].request, edits[1])
    assert not torch.allclose(other, logits(llava, samples()[0].request, both), atol=1e-3)


def test_what_is_saved_is_what_is_loaded(llava, ike):
    request = samples()[4].request
    loaded = IKE.load(ike[1], llava)
    assert loaded.edit(llava, request).texts == ike[0].edit(llava, request).texts
    assert torch.equal(loaded.encoder.mean, ike[0].encoder.mean)
    assert loaded.trained["demonstrations"] == 18 and loaded.config == ike[0].config
    with pytest.raises(SetupError, match="whose weights are not those of blip2_llama"):
        IKE.load(ike[1], tiny_vlm("blip2_llama"))
    (ike[1] / "demonstrations.json").rename(ike[1] / "gone.json")
    with pytest.raises(SetupError, match="incomplete"):
        IKE.load(ike[1], llava)
    (ike[1] / "gone.json").rename(ike[1] / "demonstrations.json")


@pytest.mark.parametrize(("given", "message"), [
    ({"layers": {"text": [1]}}, "ike writes no layer: it changes what the model is given"),
    ({"gate": "learned"}, "takes no gate"),
    ({"speed": 3}, "no setting 'speed'; there are compared_layer, demonstrations"),
    ({"compared_layer": 9}, "llava has layers 0 to 3 to compare texts in"),
    ({"preset": "fast"}, "no preset 'fast'"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(llava, tmp_path, given, message):
    with pytest.raises(AttribError, match=message):
        IKE.train(llava, samples(2), out=tmp_path, **given)


def test_without_samples_or_a_sentence_encoder_it_says_so(llava, tmp_path):
    with pytest.raises(AttribError, match="no sample to make demonstrations of"):
        IKE.train(llava, [], out=tmp_path)
    with pytest.raises(AttribError, match=r"sentence.encoder"):
        IKE.train(llava, samples(2), out=tmp_path, sentence_encoder=str(tmp_path / "none"))


def test_a_sentence_encoder_takes_the_place_of_states():
    class Letters:
        def encode(self, texts, convert_to_tensor, show_progress_bar):
            assert convert_to_tensor and not show_progress_bar
            return torch.tensor([[text.count(c) for c in "abc"] for text in texts]).double()

    encoder = SentenceEncoder("here", Letters())
    keys = encoder(["aab", "ccc", "abc"])
    assert torch.allclose(keys.norm(dim=-1), torch.ones(3))
    assert nearest(encoder(["aaabb", "cb"]), keys, 2).tolist() == [[0, 2], [2, 1]]


def test_a_threshold_parts_inputs_of_an_edit_from_others(llava):
    some = samples()
    keys = [s.request.prompt for s in some]
    encoder = StatesEncoder(llava, 1).fitted(keys)
    found = text_threshold(encoder, some, keys)
    assert found.open_rates["request"] == 1 and found.kept > found.false_open

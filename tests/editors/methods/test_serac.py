"""SERAC: what is out of scope passes bit for bit; what is in scope the small model answers."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import read
from editors.adapters import ChannelStandardizer
from editors.adapters.edit_signal import EMBED
from editors.evaluation import evaluate
from editors.evaluation.reference_model import Checksum
from editors.methods.serac import SERAC, SERACObjective, networks
from editors.methods.serac_edit import VECTOR, ScopeGate, SERACEdit
from editors.methods.serac_networks import Scope, SERACConfig
from editors.training.losses import ROLES
from editors.training.run import TrainingJob

QUICK = {"steps": 16, "batch_size": 4, "width": 32, "num_layers": 2, "num_heads": 2,
         "scope_width": 16, "scope_num_layers": 1, "learning_rate": 0.02, "warmup": 2,
         "validate_every": 16, "save_every": 16, "preset": "embedded"}  # fmt: skip
TINY = SERACConfig(width=32, num_layers=2, num_heads=2, scope_width=16, scope_num_layers=1)


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def serac(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("serac")
    return SERAC.train(llava, samples(8), out=out, **QUICK), out


def untrained(vlm, threshold=0.0):
    nets = networks(vlm, TINY, seed=3).eval()
    return SERAC(vlm, TINY, nets.answer, ScopeGate(nets.scope, vlm.num_layers // 2, threshold))


@torch.no_grad()
def logits(vlm, request, edit=None):
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    with nullcontext() if edit is None else edit.applied(vlm):
        return vlm.logits(batch)


def parting(vlm, edit, batch):
    """A threshold that serves some examples of a batch, and which."""
    with read(vlm, edit.gate.layers) as hidden:
        vlm.logits(batch)
    scores = edit.gate.scores(edit.gate.states(hidden, batch), [edit.memories[0].gate])[:, 0]
    low, high = scores.sort().values[:2].tolist()
    return (low + high) / 2, scores > (low + high) / 2


def test_the_classifiers_held_out_numbers_are_means_over_edits(llava, tmp_path, monkeypatch):
    job = TrainingJob("serac", llava, TINY, samples(4), tmp_path, samples(9)[4:])
    data, held = job.inputs([EMBED], [EMBED, 2], ROLES)
    nets = networks(llava, TINY, seed=3)
    objective = SERACObjective(llava, data, held, TINY, nets, 2)
    monkeypatch.setattr(SERACObjective, "batch_size", 4)  # batches of 4 and 1
    each = lambda _data, items: (torch.tensor(float(len(items))), 1 / len(items))  # noqa: E731
    monkeypatch.setattr(objective, "scope_loss", each)
    with torch.no_grad():
        metrics, answers = objective.validation(), super(SERACObjective, objective).validation()
    assert metrics["scope"] == pytest.approx((4 * 0.25 + 1 * 1) / 5)
    scope = metrics["loss"] - answers["loss"]
    assert scope == pytest.approx(TINY.scope_weight * (4 * 4 + 1 * 1) / 5, rel=1e-5)


@torch.no_grad()
def test_out_of_scope_inputs_pass_bit_for_bit_and_others_do_not(different_vlm):
    editor, request = untrained(different_vlm), samples(1)[0].request
    images, prompts = examples()
    batch = different_vlm.encode(images, prompts, ["blue", "Emma", "a red one"])
    edit = editor.edit(different_vlm, request)
    threshold, served = parting(different_vlm, edit, batch)
    assert served.any() and not served.all()
    edit = replace(edit, gate=replace(edit.gate, threshold=threshold))
    plain = different_vlm.logits(batch)
    with edit.applied(different_vlm):
        found = different_vlm.logits(batch)
    assert torch.equal(found[~served], plain[~served])
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(found[served], plain[served],
                                                                   strict=True))  # fmt: skip
    assert torch.equal(different_vlm.logits(batch), plain)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbours_do_not_matter_to_the_answer(vlm, side):
    edit = untrained(vlm, -torch.inf).edit(vlm, samples(1)[0].request)
    images, prompts = examples()
    targets = ["blue", "Emma", "a red one"]
    batch = vlm.encode(images, prompts, targets, padding_side=side)
    with edit.applied(vlm):
        together = vlm.logits(batch)
    for i, one in enumerate(zip(images, prompts, targets, strict=True)):
        alone = logits(vlm, EditRequest(*one), edit)[0]
        real = batch.inputs["attention_mask"][i].bool()
        assert torch.allclose(together[i, real], alone, atol=2e-4, rtol=1e-3)


def test_generation_decides_on_the_prompt_and_goes_on_with_the_small_model(vlm):
    editor, request = untrained(vlm), samples(1)[0].request
    images, prompts = examples()
    batch = vlm.encode(images, prompts)
    edit = editor.edit(vlm, request)
    threshold, served = parting(vlm, edit, batch)
    edit = replace(edit, gate=replace(edit.gate, threshold=threshold))
    plain = vlm.generate(batch, 3)
    with edit.applied(vlm):
        found = vlm.generate(batch, 3)
    assert [f for f, s in zip(found, served, strict=True) if not s] == [
        p for p, s in zip(plain, served, strict=True) if not s
    ]
    with replace(edit, gate=None).applied(vlm):
        assert vlm.generate(batch, 3)[0] == forced_text(vlm, images[0], prompts[0], 3)


@torch.no_grad()
def forced_text(vlm, image, prompt, num):
    """Greedy decoding without a cache: the whole sequence anew for every token."""
    batch, ids = vlm.encode([image], [prompt]), []
    for _ in range(num):
        inputs = dict(batch.inputs)
        new = torch.tensor([ids], dtype=torch.long)
        for key, value in batch.inputs.items():
            if key in ("input_ids", "attention_mask") or key.endswith("token_type_ids"):
                fill = new if key == "input_ids" else torch.full_like(new, key == "attention_mask")
                inputs[key] = torch.cat([value, fill], 1)
        longer = vlm.batch(inputs)
        # The prompt's last token stays what it was: the answer is counted from it.
        at = torch.zeros_like(longer["last"])
        at[:, batch["last"].shape[1] - 1] = True
        longer.spans["text"] &= torch.arange(at.shape[1]) < batch["last"].shape[1]
        longer.spans["last"] = at
        ids.append(int(vlm.logits(longer)[0, -1].argmax()))
        if ids[-1] == vlm.tokenizer.eos_token_id:
            break
    return vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_training_lowers_the_loss_leaves_the_model_and_moves_the_answer(llava, serac):
    editor, _ = serac
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.7 * losses[0]
    before, request = Checksum.of(llava.model), samples(1)[0].request
    batch = llava.encode([request.image], [request.prompt], [request.target])
    asked = batch.labels != -100
    edit = editor.with_gate(None).edit(llava, request)
    gain = [
        found[asked].log_softmax(-1).gather(1, batch.labels[asked][:, None]).sum()
        for found in (logits(llava, request), logits(llava, request, edit))
    ]
    assert gain[1] > gain[0] + 1
    with pytest.raises(RuntimeError, match="planted"), edit.applied(llava):
        raise RuntimeError("planted")
    assert not before.changes(Checksum.of(llava.model))
    result = evaluate(llava, editor, samples(1), ("paper", "exact", "generate", "easyedit"))
    assert set(result.where(editor="serac").frame["gate"]) == {"scope"}


def test_what_is_trained_is_what_is_served(llava, serac):
    editor, _ = serac
    some, nets = samples(4), networks(llava, editor.config, 0)
    config = editor.config.changed(locality=1.0)
    job = TrainingJob("serac", llava, config, some[:3], Path("unused"), some[3:])
    objective = SERAC.objective(job, nets)
    nets.answer.load_state_dict(editor.answer.state_dict())
    with torch.no_grad():
        tokens = objective.tokens(objective.data, [1])
    edit = editor.with_gate(None).edit(llava, some[1].request)
    for role in ("request", "text_locality"):
        asked = some[1].request if role == "request" else some[1].text_locality[0]
        labels = llava.encode([asked.image], [asked.prompt], [asked.target]).labels
        found = logits(llava, asked, edit)[labels != -100]
        at = tokens["roles"] == ROLES.index(role)
        assert torch.allclose(tokens["logits"][at], found, atol=1e-3, rtol=1e-3)
        clean = logits(llava, asked)[labels != -100]
        assert torch.allclose(tokens["clean"][at], clean, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_in_units_of_their_own_no_channel_hides_the_others():
    torch.manual_seed(0)
    states, large = torch.randn(50, 8), torch.full((8,), 1.0)
    large[3] = 1000.0
    net = Scope(8, 16, 1, 2)
    given = torch.ones(1, 50, dtype=torch.bool), torch.zeros(1, 8), torch.zeros(1, dtype=torch.bool)
    for shown, alike in (("raw", False), ("fitted", True)):
        found = []
        for h in (states, states * large + 7 * large):
            if shown == "fitted":
                net.units.fit([h])
            found.append(net(h[None], *given))
        assert torch.allclose(*found, atol=1e-3) == alike
    units = ChannelStandardizer(8)
    units.fit([states * large])
    torch.testing.assert_close(units.inverse(units(states)), states)


@torch.no_grad()
def test_the_classifier_reads_no_answer(vlm):
    gate = untrained(vlm).gate
    images, prompts = examples()

    def vectors(targets):
        batch = vlm.encode(images, prompts, targets, padding_side="right")
        with read(vlm, gate.layers) as hidden:
            vlm.logits(batch)
        return torch.stack([one[VECTOR] for one in gate.states(hidden, batch)])

    assert torch.allclose(vectors(["blue"] * 3), vectors(["a green one", "Emma", "7"]), atol=1e-5)
    assert not torch.allclose(vectors(["blue"] * 3)[0], vectors(["blue"] * 3)[2], atol=1e-3)


def test_of_several_edits_the_nearest_in_scope_answers(llava, serac):
    editor = serac[0]
    editor = editor.with_gate(replace(editor.gate, threshold=-torch.inf))
    requests = [samples(8)[0].request, EditRequest(picture(seed=7), "Where is Emma?", "on top")]
    edits = [editor.edit(llava, request) for request in requests]
    both = editor.merge(edits)
    assert both.num_bytes == sum(edit.num_bytes for edit in edits)
    for request in requests:
        memories = [edit.memories[0].gate for edit in edits]
        own = editor.edit(llava, request).memories[0].gate
        best = int(editor.gate.scores([own], memories).argmax())
        alone = logits(llava, request, edits[best])
        assert torch.allclose(logits(llava, request, both), alone, atol=1e-4)
    with pytest.raises(AttribError, match="2 edits together need the scope classifier"):
        SERACEdit(editor.answer, both.memories)


def test_what_is_saved_is_what_is_loaded(llava, serac, tmp_path):
    editor, out = serac
    loaded, request = SERAC.load(out, llava), samples(1)[0].request
    assert (loaded.gate.threshold, loaded.gate.layer) == (editor.gate.threshold, 2)
    for one, other in ((editor, loaded), (editor.with_gate(None), loaded.with_gate(None))):
        one, other = (logits(llava, request, e.edit(llava, request)) for e in (one, other))
        assert torch.equal(one, other)
    with pytest.raises(AttribError, match="put that gate back"):
        editor.with_gate(None).save(tmp_path)
    with pytest.raises(SetupError, match="holds no editor"):
        SERAC.load(tmp_path, llava)


def test_passes_that_do_not_tell_their_batch_and_beams_are_refused(llava, serac):
    request = samples(1)[0].request
    batch = llava.encode([request.image], [request.prompt])
    with serac[0].edit(llava, request).applied(llava):
        with pytest.raises(AttribError, match=r"by vlm.logits\(batch\) or vlm.generate"):
            llava.model(**batch.inputs)
        with pytest.raises(AttribError, match="generate without beams"):
            llava.generate(batch, 2, num_beams=2)


@pytest.mark.parametrize(("given", "message"), [
    ({"layers": {"text": [1]}}, "serac writes no layer: a model of its own answers"),
    ({"gate": "learned"}, "takes no gate"),
    ({"speed": 3}, "no setting 'speed'; there are batch_size"),
    ({"scope_layer": 9}, "scope_layer 9: llava has layers 0 to 3"),
    ({"num_heads": 5}, "a width of 32 for 5 heads: expected a multiple of 10"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(llava, tmp_path, given, message):
    with pytest.raises(AttribError, match=message):
        SERAC.train(llava, samples(3), out=tmp_path, **{**QUICK, **given})

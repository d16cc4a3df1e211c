"""Decoders that differ from the plain one: logits, reads, writes and replays are still the model's.

By brute force: the model's own hidden states and logits, and one pass with hooks per layer.
"""

import copy

import pytest
import tiny_structures
import torch
from conftest import tiny_vlm
from torch.testing import assert_close

from attrib.analyses.contributions import contribution_parts
from attrib.analyses.direct_logits import direct_logits
from attrib.analyses.sensitivity import sensitivity
from attrib.data import EditData
from attrib.errors import SetupError
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import read, write
from attrib.forward.noise import draw_noise
from attrib.forward.residual import residual_writes
from attrib.model import encoding
from attrib.model.logits import keep_all
from attrib.model.vlm import VLM
from attrib.runs.manifest import provenance_of

PAD, BOS = 256, 257
_built = {}


def decoder(name):
    if name not in _built:
        _built[name] = VLM(tiny_structures.build_decoder(name), name=name)
    return _built[name]


def padded(vlm):
    """Two texts, the first padded on the left."""
    ids = torch.tensor([[PAD, PAD, BOS, *range(5, 14)], [BOS, *range(20, 31)]])
    return vlm.batch({"input_ids": ids, "attention_mask": (ids != PAD).long()})


@pytest.fixture(params=tiny_structures.KINDS)
def vlm(request):
    """Each decoder of `tiny_structures`."""
    with torch.no_grad():
        yield decoder(request.param)


def test_readings_are_the_models_own(vlm):
    batch = padded(vlm)
    real = batch.inputs["attention_mask"].bool()
    plain = vlm.logits(batch)
    with (
        read(vlm) as hidden,
        residual_writes(vlm, batch["last"]),
        attention_rows(vlm, batch["last"]),
    ):
        hooked = vlm.logits(batch)
    assert torch.equal(hooked[real], plain[real])
    told = encoding.positions(batch.inputs["attention_mask"]) if vlm._counts_padding else {}
    settings = {"use_cache": False, "output_hidden_states": True}
    theirs = vlm.model(**batch.inputs, **told, **settings).hidden_states
    for layer in range(vlm.num_layers - 1):
        assert torch.equal(hidden[layer][real], theirs[layer + 1][real])
    assert torch.equal(vlm.unembed(hidden[vlm.num_layers - 1])[real], plain[real])
    assert_close(vlm.last_logits(batch), plain[:, -1], rtol=1e-4, atol=1e-4)
    alone = vlm.logits(vlm.batch({"input_ids": batch.inputs["input_ids"][:1, 2:]}))
    assert_close(alone[0], plain[0, 2:], rtol=1e-3, atol=1e-3)


def test_contributions_sum_to_the_logit_before_the_cap(vlm):
    batch = padded(vlm)
    parts = direct_logits(vlm, batch)
    logits = vlm.logits(batch)[:, -1].gather(1, parts.key[:, None])[:, 0]
    assert_close(parts.logit, logits, rtol=1e-4, atol=1e-4)
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.logits(batch)
    cap = vlm.unembedding.map.cap
    assert contribution_parts(vlm, batch).cap == parts.cap == cap
    assert provenance_of(vlm, EditData("none", "none", []), {}, 0)["model"].get("soft_cap") == cap
    total = writes.embed + (writes.attn + writes.mlp + writes.between_layers).sum(1)
    assert_close(total, writes.final, rtol=1e-4, atol=1e-4 * float(writes.final.abs().max()))


def test_sensitivity_equals_a_pass_with_hooks_per_layer(vlm):
    batch = padded(vlm)
    ours = sensitivity(vlm, batch, "text", sigmas=(0.5,))[..., 0]
    with read(vlm) as hidden:
        clean = vlm.logits(batch)[:, -1].double().log_softmax(-1)
    given = {"unit": "std", "exclude_last": False, "seed": 0, "draw": 0}
    noise = draw_noise(batch, "text", vlm.d_model, 0, **given)
    for layer in range(vlm.num_layers):
        noisy = hidden[layer] + 0.5 * noise.scaled(hidden[layer])
        with write(vlm, layer, lambda _h, new=noisy: new, noise.at):
            changed = vlm.logits(batch)[:, -1].double().log_softmax(-1)
        divergence = (clean.exp() * (clean - changed)).sum(-1).float()
        assert_close(ours[:, layer], divergence, rtol=1e-3, atol=1e-6)
        assert (divergence > 1e-5).all()


def test_what_a_model_does_to_its_logits_is_found():
    expected = {
        "gemma4": (1.0, 5.0), "hyperclovax_vision_v2": (8.0, None), "cohere_compass": (0.25, None),
        "granite4_vision": (1 / 8, None), "llama4": (1.0, None),
    }  # fmt: skip
    for name, (factor, cap) in expected.items():
        found = decoder(name).unembedding.map
        assert (found.factor, found.cap) == (factor, cap), name
    muse = decoder("muse_glimmer")
    text = muse.model.config.text_config
    assert muse.unembedding.map.factor == text.output_multiplier
    assert muse.unembedding.map.cap == text.final_logit_softcapping


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x, (1.0, None, 0)),
        (lambda x: x * 0.3, (0.3, None, 0)),
        (lambda x: 7 * torch.tanh(x / 70), (0.1, 7.0, 0)),
        (lambda x: x.index_fill(-1, torch.tensor([3, 5]), -1e30), (1.0, None, 2)),
        (lambda x: x**3, None),
        (lambda x: x + 1, None),
        (lambda x: x.log_softmax(-1), None),
    ],
)
def test_planted_changes_of_the_logits_are_found_or_refused(change, found):
    model = copy.deepcopy(tiny_vlm("llava").model)
    forward = model.forward

    def changed(**inputs):
        out = forward(**inputs)
        out.logits = change(out.logits)
        return out

    model.forward = changed
    if found is None:
        with pytest.raises(SetupError, match="its logits are neither"):
            VLM(model)
        return
    vlm = VLM(model)
    known = vlm.unembedding.map
    masked = 0 if known.masked is None else int(known.masked.sum())
    assert (known.factor, known.cap, masked) == (pytest.approx(found[0], rel=1e-4), *found[1:])
    with torch.no_grad(), read(vlm) as hidden:
        logits = vlm.logits(padded(vlm))
    assert_close(vlm.unembed(hidden[3]), logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_model_that_counts_padding_as_positions_is_told_them():
    """Mistral Large 4 scales queries by their position; `generate` of transformers tells it."""
    vlm = decoder("mistral_large4")
    batch = padded(vlm)
    assert vlm._counts_padding and not decoder("llama4")._counts_padding
    untold = vlm.model(**batch.inputs, use_cache=False).logits
    alone = vlm.logits(vlm.batch({"input_ids": batch.inputs["input_ids"][:1, 2:]}))
    assert float((untold[0, 2:] - alone[0]).abs().max()) > 0.01
    generated = vlm.model.generate(
        **batch.inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    assert_close(generated.logits[0], vlm.logits(batch)[:, -1], rtol=1e-4, atol=1e-4)


def test_generation_runs_all_layers_on_the_whole_prompt():
    """Gemma 4's layers without keys of their own leave out all positions but the last."""
    vlm = decoder("gemma4_per_layer")
    batch = padded(vlm)
    with torch.no_grad(), read(vlm) as hidden:
        vlm.model.generate(**batch.inputs, **keep_all(vlm.components.decoder), max_new_tokens=1)
    assert hidden[3].shape[1] == batch["text"].shape[1]


def test_layers_that_do_not_attend_have_no_rows():
    for name, attending in {"qwen3_5": [3], "lfm2_vl": [3], "nemotron_h_omni": [2]}.items():
        vlm = decoder(name)
        with torch.no_grad(), attention_rows(vlm, padded(vlm)["last"]) as rows:
            vlm.logits(padded(vlm))
        assert sorted(rows) == attending, name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3n", "several residual streams"),
        ("mllama", "reads pictures by cross-attention"),
        ("idefics", "reads pictures by cross-attention"),
        ("blip", "reads pictures by cross-attention"),
        ("diffusion_gemma", "diffusion decoders"),
        ("mistral4", "reads text only"),
        ("kosmos-2", "has no image_token_id"),
        ("pi0", "no hidden_size of a text decoder"),
    ],
)
def test_other_readers_are_refused_by_name(name, reason):
    with pytest.raises(SetupError, match=reason):
        VLM(tiny_structures.build_refused(name))

"""A suffix leaves out only what noise cannot reach; layers that cannot be sliced run whole."""

import logging

import conftest
import pytest
import torch
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

from attrib.analyses.sensitivity import clean_pass, sensitivity
from attrib.forward import suffix as suffixes
from attrib.forward.hooks import read, write
from attrib.forward.layer_call import NoCacheError, is_known, keys_values, visible_keys
from attrib.forward.noise import perturbed_positions

CUT = ("llava", "llava_next", "llava_onevision", "blip2_opt", "blip2_llama", "instructblip")
CLOSE = {"atol": 1e-6, "rtol": 1e-5, "equal_nan": True}


@pytest.fixture(autouse=True)
def _unverified(monkeypatch):
    """No model has been verified, and every suffix pays, before and after each test."""
    monkeypatch.setattr(suffixes, "MIN_SAVING", 0.0)
    forget()
    yield
    forget()


def forget():
    for vlm in conftest._built.values():
        vlm.verified.clear()


def encoded(vlm, num=1):
    return vlm.encode([picture(seed=i) for i in range(num)], ["What stands on the left?"] * num)


def suffix_for(vlm, batch, first):
    return suffixes.build_suffix(clean_pass(vlm, batch), first)


def first_of(batch, modality):
    return int(perturbed_positions(batch, modality).any(0).int().argmax())


@pytest.mark.parametrize("name", CUT)
def test_noise_on_text_after_the_image_leaves_the_image_unchanged(name):
    vlm = tiny_vlm(name)
    batch = encoded(vlm)
    suffix = suffix_for(vlm, batch, first_of(batch, "text"))
    assert suffix.start == first_of(batch, "text") > int(batch["visual"].sum()) - 1
    assert suffix.query is not None and set(suffix.prefix) == set(range(vlm.num_layers))
    assert {kept.keys.shape[2] for kept in suffix.prefix.values()} == {suffix.start}


def test_a_bidirectional_prefix_runs_again():
    vlm = tiny_vlm("paligemma")
    batch = encoded(vlm)
    assert first_of(batch, "text") > 0
    suffix = suffix_for(vlm, batch, first_of(batch, "text"))
    assert suffix.start == 0 and not suffix.prefix


def test_a_block_of_image_tokens_is_never_split():
    vlm = tiny_vlm("gemma3")
    batch = encoded(vlm)
    block = batch["visual"][0].nonzero()[:, 0].tolist()
    starts = {
        first: suffix_for(vlm, batch, first).start for first in range(block[0], block[-1] + 3)
    }
    assert {starts[first] for first in block} == {block[0]}
    assert starts[block[-1] + 1] == block[-1] + 1  # nothing looks across the end of the block


def test_positions_before_the_suffix_are_unchanged_by_the_noise(different_vlm):
    batch = encoded(different_vlm)
    for modality in ("text", "visual"):
        start = suffix_for(different_vlm, batch, first_of(batch, modality)).start
        at = perturbed_positions(batch, modality)
        with read(different_vlm) as clean, torch.no_grad():
            different_vlm.logits(batch)
        with (
            write(different_vlm, 0, lambda h: h + 1, at),
            read(different_vlm) as noisy,
            torch.no_grad(),
        ):
            different_vlm.logits(batch)
        for layer in range(different_vlm.num_layers):
            assert torch.equal(clean[layer][:, :start], noisy[layer][:, :start])
        last = different_vlm.num_layers - 1
        assert not torch.equal(clean[last][:, start:], noisy[last][:, start:])


def test_padding_does_not_change_where_the_suffix_starts():
    vlm = tiny_vlm("llava")
    batch = vlm.encode(*examples(), padding_side="left")
    assert suffix_for(vlm, batch, first_of(batch, "text")).start == first_of(batch, "text")


def test_a_saving_that_is_too_small_is_not_made(monkeypatch):
    vlm = tiny_vlm("llava")
    batch = encoded(vlm)
    assert suffix_for(vlm, batch, 1).start == 1
    monkeypatch.setattr(suffixes, "MIN_SAVING", 0.1)
    assert suffix_for(vlm, batch, 1).start == 0


@pytest.mark.parametrize("modality", ["text", "visual"])
def test_layers_that_run_whole_give_the_same_numbers(different_vlm, monkeypatch, modality):
    batch = different_vlm.encode(*examples(), padding_side="left")
    cut = sensitivity(different_vlm, batch, modality, (0.5,))
    monkeypatch.setattr(suffixes, "is_known", lambda _call: False)
    suffix = suffix_for(different_vlm, batch, first_of(batch, modality))
    assert suffix.start == 0 and suffix.query is None and not suffix.prefix
    assert_close(sensitivity(different_vlm, batch, modality, (0.5,)), cut, **CLOSE)


def test_a_suffix_that_gives_other_numbers_is_detected_and_not_used(monkeypatch, caplog):
    vlm = tiny_vlm("llava")
    batch = encoded(vlm, 2)
    right, real = sensitivity(vlm, batch, "text", (0.5,)), suffixes.slice_positions

    def one_off(call, start, stop, num_pos, like):
        late = int(start > 0)  # the suffix gets the positions one in front of its own
        return real(call, start - late, stop - late, num_pos, like)

    monkeypatch.setattr(suffixes, "slice_positions", one_off)
    forget()
    with caplog.at_level(logging.INFO, "attrib"):
        assert suffix_for(vlm, batch, first_of(batch, "text")).start == 0
    assert "llava: layers run whole (sliced, they differ by" in caplog.text
    assert_close(sensitivity(vlm, batch, "text", (0.5,)), right, **CLOSE)


def test_layers_that_cannot_be_sliced_run_whole(monkeypatch, caplog):
    vlm = tiny_vlm("llava")
    batch = encoded(vlm)
    right = sensitivity(vlm, batch, "text", (0.5,))

    def no_keys(layer, *_):
        raise NoCacheError(f"{type(layer).__name__} does not use a cache")

    monkeypatch.setattr(suffixes, "keys_values", no_keys)
    forget()
    with caplog.at_level(logging.INFO, "attrib"):
        assert_close(sensitivity(vlm, batch, "text", (0.5,)), right, **CLOSE)
    assert "layers run whole (LlamaDecoderLayer does not use a cache)" in caplog.text


def test_a_layer_without_a_cache_has_no_keys():
    call = ((), {})
    with pytest.raises(NoCacheError, match="Ignoring does not use a cache"):
        keys_values(Ignoring(), torch.zeros(1, 2, 4), call)


class Ignoring(torch.nn.Module):
    def forward(self, h, **_):
        return h


def test_a_model_is_verified_once(monkeypatch):
    vlm = tiny_vlm("llava")
    compared, real = [], suffixes._equals_whole
    monkeypatch.setattr(
        suffixes, "_equals_whole", lambda *given: compared.append(1) or real(*given)
    )
    for num in (1, 2, 1):
        batch = encoded(vlm, num)
        suffix_for(vlm, batch, first_of(batch, "text"))
    assert len(compared) == 1


def test_calls_with_tensors_of_unknown_axes_are_not_sliced():
    h = torch.zeros(2, 3)
    assert is_known(((), {"attention_mask": None, "position_embeddings": (h, h), "flag": True}))
    assert not is_known(((), {"attention_mask": h}))
    assert not is_known(((), {"per_layer_input": h}))
    assert not is_known(((), {"more": {"inside": (h,)}}))
    assert not is_known(((h,), {}))


def test_a_missing_mask_is_causal_and_an_additive_mask_is_read():
    like = torch.zeros(1)
    causal = torch.ones(3, 3).tril().bool()[None, None]
    assert torch.equal(visible_keys(((), {}), 3, like), causal)
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~causal, torch.finfo(torch.float32).min)
    assert torch.equal(visible_keys(((), {"attention_mask": additive}), 3, like), causal)

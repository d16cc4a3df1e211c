"""Sensitivity: what hooks would give, exactly, for every model, modality, padding and batch."""

import copy
import logging
from inspect import unwrap  # the type checks of test runs would speak before our own messages

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

from attrib.analyses.sensitivity import clean_pass, sensitivity
from attrib.errors import AttribError
from attrib.forward import suffix as suffix_module
from attrib.forward.hooks import read, write
from attrib.forward.memory import in_chunks
from attrib.forward.noise import base_noise, perturbed_positions
from attrib.forward.suffix import Suffix, build_suffix
from attrib.metrics import kl
from attrib.model.vlm import VLM

MODALITIES = {"text": ("text",), "visual": ("visual",), "both": ("visual", "text")}
CLOSE = {"atol": 1e-6, "rtol": 1e-5, "equal_nan": True}


@torch.no_grad()
def by_hooks(vlm, batch, modality, sigmas, unit="std", draws=1, seed=0, exclude_last=False):
    """One forward pass per layer, sigma and draw, the noise written into the layer's output."""
    with read(vlm) as hidden:
        clean = vlm.logits(batch).double()
    spans = [batch[span] for span in MODALITIES[modality]]
    at = torch.stack(spans).any(0) & ~(batch["last"] & exclude_last)
    out = torch.zeros(batch.size, vlm.num_layers, len(sigmas))
    for layer in range(vlm.num_layers):
        for draw in range(draws):
            noise = torch.zeros_like(hidden[layer])
            for name, span in zip(MODALITIES[modality], spans, strict=True):
                base = base_noise(batch, name, vlm.d_model, seed=seed, draw=draw)
                for i in range(batch.size):
                    states = hidden[layer][i, span[i]]
                    if len(states):
                        noise[i] += base[i] * (states.std() if unit == "std" else 1)
            for j, sigma in enumerate(sigmas):
                with write(vlm, layer, lambda h, by=sigma * noise: h + by, at):
                    noisy = vlm.logits(batch).double()
                out[:, layer, j] += kl(clean, noisy, batch["last"]).float() / draws
    out[~at.any(1)] = torch.nan
    return out


def start_of(vlm, batch, modality):
    """Where the suffix starts that noise on a modality reaches, and where the noise does."""
    first = int(perturbed_positions(batch, modality).any(0).int().argmax())
    return build_suffix(clean_pass(vlm, batch), first), first


def llava():
    """One model, and examples of both kinds."""
    vlm = tiny_vlm("llava")
    return vlm, vlm.encode(*examples(), padding_side="left")


@pytest.fixture
def always_sliced(monkeypatch):
    """Slice even where it saves little, as on prompts of a few words."""
    monkeypatch.setattr(suffix_module, "MIN_SAVING", 0.0)


@pytest.mark.usefixtures("always_sliced")
def test_suffix_replay_equals_hooks(different_vlm):
    equals_hooks(different_vlm, "text")


@pytest.mark.usefixtures("always_sliced")
@pytest.mark.parametrize("modality", ["visual", "both"])
def test_every_modality_equals_hooks(different_vlm, modality):
    equals_hooks(different_vlm, modality)


def equals_hooks(vlm, modality):
    batch = vlm.encode(*examples(), padding_side="left")
    expected = by_hooks(vlm, batch, modality, (0.7,))
    assert expected.nan_to_num().max() > 1e-4
    assert_close(sensitivity(vlm, batch, modality, (0.7,)), expected, **CLOSE)


@pytest.mark.usefixtures("always_sliced")
def test_sensitivity_does_not_depend_on_padding_or_other_examples(different_vlm):
    images, prompts = examples()
    left, right = (
        sensitivity(
            different_vlm, different_vlm.encode(images, prompts, padding_side=side), "both", (0.7,)
        )
        for side in ("left", "right")
    )
    alone = different_vlm.encode(images[-1:], prompts[-1:])
    assert_close(right, left, **CLOSE)
    assert_close(sensitivity(different_vlm, alone, "both", (0.7,))[0], left[-1], **CLOSE)


@pytest.mark.parametrize(
    "options", [{"unit": "abs"}, {"draws": 2}, {"seed": 5}, {"exclude_last": True}]
)
def test_every_option_equals_hooks(vlm, batch, options):
    expected = by_hooks(vlm, batch, "both", (0.6,), **options)
    assert_close(sensitivity(vlm, batch, "both", (0.6,), **options), expected, **CLOSE)


def test_eight_examples_together_are_what_each_is_alone(vlm):
    images, prompts = examples(8)
    together = sensitivity(vlm, vlm.encode(images, prompts), "both", (0.5,))
    for i in (0, 1, 7):
        alone = sensitivity(vlm, vlm.encode([images[i]], [prompts[i]]), "both", (0.5,))
        assert_close(together[i], alone[0], **CLOSE)


def test_no_noise_gives_zero_and_some_noise_does_not(different_vlm):
    batch = different_vlm.encode(*examples(1))
    values = sensitivity(different_vlm, batch, "both", (0.0, 0.3))
    assert (values[..., 0] == 0).all() and (values[..., 1] > 0).all()
    assert (sensitivity(different_vlm, batch, "both", (0.0,)) == 0).all()


def test_noise_after_the_last_layer_matters_only_at_the_last_token(vlm):
    batch = vlm.encode(*examples(1))
    last = vlm.num_layers - 1
    assert (sensitivity(vlm, batch, "visual")[:, last] == 0).all()
    assert (sensitivity(vlm, batch, "text", exclude_last=True)[:, last] == 0).all()
    assert (sensitivity(vlm, batch, "text")[:, last] > 0).all()
    assert (sensitivity(vlm, batch, "visual")[:, :last] > 0).all()


def test_noise_belongs_to_the_example_at_any_place(vlm):
    images, prompts = examples(4)
    names = ["a", "b", "c", "d"]
    values = sensitivity(vlm, vlm.encode(images, prompts).named(names), "both")
    turned = vlm.encode(images[::-1], prompts[::-1]).named(names[::-1])
    assert_close(sensitivity(vlm, turned, "both").flip(0), values, **CLOSE)
    renamed = vlm.encode(images, prompts).named(names[::-1])
    assert not torch.allclose(sensitivity(vlm, renamed, "both"), values, rtol=1e-3)


def test_other_seeds_and_draws_are_other_noise():
    vlm, batch = llava()
    first = sensitivity(vlm, batch, seed=0)
    assert torch.equal(sensitivity(vlm, batch, seed=0), first)
    for options in ({"seed": 1}, {"draws": 2}):
        assert not torch.allclose(sensitivity(vlm, batch, **options), first, rtol=1e-3)


def test_the_chosen_layers_are_those_of_all_in_the_chosen_order():
    vlm, batch = llava()
    values = sensitivity(vlm, batch)
    chosen = sensitivity(vlm, batch, layers=[3, 0, 1])
    assert_close(chosen, values[:, [3, 0, 1]], **CLOSE)


@pytest.mark.parametrize("modality", ["text", "visual"])
def test_the_number_of_copies_at_once_does_not_matter(modality):
    vlm, batch = llava()
    values = sensitivity(vlm, batch, modality, (0.5, 1.0))
    for size in (1, 5, 1000):
        chunked = sensitivity(vlm, batch, modality, (0.5, 1.0), max_copies=size)
        assert_close(chunked, values, **CLOSE)


def test_if_memory_runs_out_chunks_are_halved(monkeypatch, caplog):
    (vlm, batch), sizes = llava(), []
    error = torch.OutOfMemoryError("CUDA out of memory")
    values = sensitivity(vlm, batch)
    run = Suffix.run

    def limited(self, layers, rows, perturbed):
        sizes.append(len(layers))
        if len(layers) > 5:
            raise error
        return run(self, layers, rows, perturbed)

    monkeypatch.setattr(Suffix, "run", limited)
    with caplog.at_level(logging.WARNING, "attrib"):
        assert_close(sensitivity(vlm, batch), values, **CLOSE)
    assert sizes[:5] == [60, 30, 15, 8, 4] and set(sizes[4:]) == {4}
    assert "continuing with 4 rows at a time" in caplog.text


def test_if_a_single_row_does_not_fit_the_error_is_raised():
    def run(_chunk):
        raise RuntimeError("can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(in_chunks(run, 4, 4))
    with pytest.raises(ZeroDivisionError):
        list(in_chunks(lambda _: torch.tensor(1 / 0), 4, 4))


def test_a_text_only_prompt_has_no_visual_sensitivity(vlm, batch):
    values = sensitivity(vlm, batch, "visual", (0.0, 1.0))
    assert values[1].isnan().all() and values[[0, 2]].isfinite().all()
    assert sensitivity(vlm, batch, "both").isfinite().all()


def test_targets_do_not_matter(vlm):
    images, prompts = [picture(), None], ["What color?", "Who wrote it?"]
    with_targets = vlm.encode(images, prompts, ["red", "Jane Austen"]).named(["a", "b"])
    without = vlm.encode(images, prompts).named(["a", "b"])
    assert_close(sensitivity(vlm, with_targets), sensitivity(vlm, without), **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"modality": "audio"}, "modality: expected one of text, visual, both, got 'audio'"),
        ({"unit": "db"}, "unit: expected one of std, abs, got 'db'"),
        ({"sigmas": ()}, "sigmas: expected at least one"),
        ({"sigmas": (0.1, -0.5)}, "sigmas: expected finite numbers of 0 or more, got -0.5"),
        ({"sigmas": (float("nan"),)}, "sigmas: expected finite numbers of 0 or more, got nan"),
        ({"draws": 0}, "draws: expected 1 or more, got 0"),
        ({"max_copies": 0}, "max_copies: expected 1 or more, got 0"),
        ({"layers": [4]}, "layers: there is no layer 4; llava has layers 0 to 3"),
        ({"layers": [-1]}, "layers: there is no layer -1; llava has layers 0 to 3"),
        ({"layers": []}, "layers: none given; llava has layers 0 to 3"),
    ],
)
def test_an_invalid_argument_is_refused_with_valid_values(arguments, told):
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError) as error:
        unwrap(sensitivity)(vlm, vlm.encode([None], ["x"]), **arguments)
    assert told in str(error.value)


def test_a_batch_with_nothing_to_perturb_is_refused(vlm):
    with pytest.raises(AttribError, match="no example has an image; give images"):
        sensitivity(vlm, vlm.encode([None, None], ["Who?", "What?"]), "visual")
    with pytest.raises(AttribError, match="no example has a token to perturb except"):
        sensitivity(vlm, vlm.encode([None], ["a"]), "text", exclude_last=True)


def test_only_examples_with_nan_logits_are_nan():
    vlm, batch = llava()
    broken = VLM(copy.deepcopy(vlm.model), vlm.processor, vlm.name)
    next(broken.layers[2].parameters()).fill_(torch.nan)
    assert sensitivity(broken, batch, "both", (0.0, 1.0)).isnan().all()
    inputs = batch.inputs | {"pixel_values": batch.inputs["pixel_values"].clone()}
    inputs["pixel_values"][0] = torch.nan  # of the first example alone
    values = sensitivity(vlm, vlm.batch(inputs), "both", (0.0, 1.0))
    assert values[0].isnan().all()
    assert_close(values[1:], sensitivity(vlm, batch, "both", (0.0, 1.0))[1:], **CLOSE)


def test_bfloat16_is_close_to_hooks():
    vlm = tiny_vlm("llava_next")
    half = VLM(copy.deepcopy(vlm.model).bfloat16(), vlm.processor, "half")
    batch = half.encode(*examples(), padding_side="left")
    assert start_of(half, batch, "text")[0].start > 0
    values = sensitivity(half, batch, "text", (0.7,))
    assert_close(values, by_hooks(half, batch, "text", (0.7,)), atol=0.01, rtol=0.15)

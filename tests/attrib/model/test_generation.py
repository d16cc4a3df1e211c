"""Generation is greedy, whatever the generation config holds; callers' settings win."""

import copy

import pytest
import torch
import transformers as tr
from conftest import examples, tiny_vlm

import attrib
from attrib.errors import AttribError
from attrib.model.vlm import VLM

HOSTILE = {
    "repetition_penalty": 10.0, "no_repeat_ngram_size": 2, "suppress_tokens": list(range(150)),
    "begin_suppress_tokens": list(range(150, 256)), "bad_words_ids": [[5], [7]],
    "forced_eos_token_id": 2, "min_new_tokens": 5, "min_length": 40, "max_length": 3,
    "max_time": 1e-9, "num_beams": 3, "num_return_sequences": 2, "do_sample": True,
    "temperature": 5.0, "penalty_alpha": 0.6, "top_k": 4, "stop_strings": ["e"],
    "return_dict_in_generate": True, "output_scores": True, "guidance_scale": 1.5,
    "cache_implementation": "static", "exponential_decay_length_penalty": (1, 1.5),
    "sequence_bias": [[[9], 10.0]], "watermarking_config": {"bias": 5.0},
    "prompt_lookup_num_tokens": 2, "use_cache": False, "renormalize_logits": True,
}  # fmt: skip
FAMILIES = ("llava", "blip2_opt", "instructblip")


def hostile(name, **settings):
    """A copy of a tiny model whose every generation config holds the settings, and the original."""
    tiny = tiny_vlm(name)
    model = copy.deepcopy(tiny.model)
    for part in model.modules():
        if hasattr(part, "generation_config"):
            for key, value in settings.items():
                setattr(part.generation_config, key, value)
    return VLM(model, tiny.processor), tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_no_setting_of_a_checkpoint_changes_the_text(name):
    vlm, tiny = hostile(name, **HOSTILE)
    batch = tiny.encode(*examples(), padding_side="left")
    plain = tiny.generate(batch, max_new_tokens=5)
    assert vlm.generate(batch, max_new_tokens=5) == plain and any(plain)
    # The control: the model's own `generate` does not give these texts.
    beams, _ = hostile(name, repetition_penalty=10.0)
    own = beams.model.generate(**batch.inputs, max_new_tokens=5, pad_token_id=tiny.pad_id)
    assert tiny.tokenizer.batch_decode(own[:, -5:]) != plain


@pytest.mark.parametrize("name", FAMILIES)
def test_each_generated_token_is_the_argmax_of_the_logits(name):
    vlm, tiny = hostile(name, repetition_penalty=10.0, num_beams=4)
    image, prompt = [picture[0] for picture in examples()]
    ids = []
    vlm.generate(
        batch := vlm.encode([image], [prompt]), 5,
        stopping_criteria=[lambda seen, _scores: ids.append(seen[0, -1]) or torch.tensor([False])],
    )  # fmt: skip
    inputs = dict(batch.inputs)
    for token in ids:
        with torch.no_grad():
            assert tiny.logits(tiny.batch(inputs))[0, -1].argmax() == token
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token[None, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert len(ids) == 5


def test_the_generation_config_is_back_afterwards():
    vlm, _ = hostile("blip2_opt", num_beams=3)
    before = [m.generation_config for m in vlm.model.modules() if hasattr(m, "generation_config")]
    assert len(before) == 2 and all(config.num_beams == 3 for config in before)
    vlm.generate(vlm.encode(*examples(1)), 2)
    with pytest.raises(AttribError):
        vlm.generate(vlm.encode(*examples(1)), 2, nonsense=1)
    after = [m.generation_config for m in vlm.model.modules() if hasattr(m, "generation_config")]
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ("llava", "blip2_opt"))
def test_a_callers_settings_win(name):
    vlm, tiny = hostile(name, **HOSTILE)
    batch = tiny.encode(*examples(), padding_side="left")
    plain = tiny.generate(batch, 5)
    own = {"bad_words_ids": [[int(tiny.tokenizer.encode("e")[-1])]], "repetition_penalty": 10.0}
    changed = vlm.generate(batch, 5, **own)
    assert changed == tiny.generate(batch, 5, **own) != plain
    assert vlm.generate(batch, 5, generation_config=tr.GenerationConfig(**own)) == changed
    config = tr.GenerationConfig(max_new_tokens=2)
    assert vlm.generate(batch, generation_config=config) == vlm.generate(batch, 2)
    width = batch.inputs["input_ids"].shape[1]
    assert vlm.generate(batch, max_length=width + 2) == vlm.generate(batch, 2)
    assert len(vlm.generate(batch, 3, num_beams=2, num_return_sequences=2)) == 2 * batch.size
    assert vlm.generate(batch, 5, return_dict_in_generate=True, output_scores=True) == plain
    assert vlm.generate(batch, 5, stop_strings=["never"]) == plain  # which needs the tokenizer


@pytest.mark.parametrize(
    "given",
    [{"nonsense": 1}, {"num_return_sequences": 3}, {"num_beams": 0}, {"assistant_model": 7}],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(given):
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match=f"generate with max_new_tokens, {next(iter(given))}: "):
        vlm.generate(vlm.encode(*examples(1)), 2, **given)
    with pytest.raises(AttribError, match="generation_config is a dict; give a GenerationConfig"):
        vlm.generate(vlm.encode(*examples(1)), 2, generation_config={"num_beams": 2})
    with pytest.raises(AttribError, match="max_new_tokens"):
        vlm.generate(vlm.encode(*examples(1)), 0)


def test_generation_ends_at_the_checkpoints_end_of_sequence():
    vlm, tiny = hostile("llava", **HOSTILE)
    batch = tiny.encode(*examples(1))
    ids = []
    keep = [lambda seen, _scores: ids.append(int(seen[0, -1])) or torch.tensor([False])]
    tiny.generate(batch, 4, stopping_criteria=keep)
    vlm.model.generation_config.eos_token_id = [ids[1], 999]
    del ids[:]
    vlm.generate(batch, 4, stopping_criteria=keep)
    assert len(ids) == 2


def test_a_hostile_generation_config_on_disk_is_survived(tmp_path):
    tiny = tiny_vlm("llava")
    for part in (tiny.model, tiny.processor):
        part.save_pretrained(tmp_path)
    tr.GenerationConfig(num_beams=4, repetition_penalty=9.0).save_pretrained(tmp_path)
    vlm = attrib.load(str(tmp_path))
    batch = tiny.encode(*examples())
    assert vlm.generate(batch, 5) == tiny.generate(batch, 5)


@pytest.mark.parametrize("name", ["llava", "blip2_opt"])  # rotary and learned positions
def test_generation_stops_at_the_last_position(name, caplog):
    vlm = tiny_vlm(name)
    batch = vlm.encode([None, None], ["a" * 508, "b"], padding_side="left")
    room = 512 - int(batch.inputs["attention_mask"].sum(1).max()) + 1
    settings = {"eos_token_id": 511}  # no text ends by itself

    def lengths(**limits):
        steps = []
        keep = [lambda ids, _: steps.append(0) or torch.zeros(len(ids), dtype=torch.bool)]
        vlm.generate(batch, stopping_criteria=keep, **settings, **limits)
        return len(steps)

    assert lengths(max_new_tokens=room) == room and caplog.text == ""
    assert lengths(max_new_tokens=room + 1) == room
    assert f"stops after {room} new tokens, not {room + 1}: the decoder has 512" in caplog.text
    assert lengths(max_length=2000) == room

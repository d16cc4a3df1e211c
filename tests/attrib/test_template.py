"""Prompts in the chat template: of a model, of commands, of editors; raw unless asked."""

import json

import pytest
import torch
from conftest import picture, save_tiny, tiny_vlm

import attrib
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors import load_editor
from editors.io import read_record, write_record

PROMPT = "What is it?"


@pytest.fixture(scope="module")
def raw():
    return tiny_vlm("smolvlm")


@pytest.fixture(scope="module")
def chat(raw):
    return VLM(raw.model, raw.processor, raw.name, "chat")


def ids(vlm, **given):
    return vlm.encode([picture()], [PROMPT], **given).inputs["input_ids"].tolist()


def test_a_model_with_a_template_encodes_every_prompt_in_it(raw, chat):
    assert ids(chat) == ids(raw, template="chat") != ids(raw)
    assert ids(chat, template="raw") == ids(raw)
    given = ([picture(), None], [PROMPT, "Who?"], ["a", "b"])
    one, other = chat.encode(*given), raw.encode(*given, template="chat")
    assert torch.equal(one.labels, other.labels) and torch.equal(one["visual"], other["visual"])
    batch = chat.encode([picture()], [PROMPT])
    wanted = attrib.contributions(raw, raw.encode([picture()], [PROMPT], template="chat"))
    torch.testing.assert_close(attrib.contributions(chat, batch), wanted)


def test_auto_is_the_chat_template_of_models_that_have_one(tmp_path):
    with_template, without = (save_tiny(tmp_path / name, name) for name in ("smolvlm", "llava"))
    file = without / "chat_template.jinja"
    file.unlink(missing_ok=True)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if (without / name).is_file():
            content = json.loads((without / name).read_text())
            content.pop("chat_template", None)
            (without / name).write_text(json.dumps(content))
    assert attrib.load(with_template, template="auto").template == "chat"
    assert attrib.load(with_template).template == "raw"
    assert attrib.load(without, template="auto").template == "raw"


def test_commands_take_the_template_and_a_run_is_of_one(run, tmp_path):
    save_tiny(tmp_path / "m", "smolvlm")
    picture().save(tmp_path / "0.png")
    on = ("attention", "--model", "m", "--image", "0.png", "--prompt", PROMPT, "--out", "o")
    assert run(*on, "--template", "chat")[0] == 0
    made = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert made["model"]["template"] == "chat" and made["options"]["template"] == "chat"
    code, _, err = run(*on)
    assert code != 0 and "template" in err
    (tmp_path / "q.csv").write_text("image,prompt,target\n0.png,What is it?,a cat\n")
    words = ("attention", "--model", "m", "--data", "q.csv", "--answer-prefix", 1)
    code, _, err = run(*words, "--template", "chat")
    assert code != 0 and "--answer-prefix: its words go behind the prompt" in err


def test_an_editor_of_one_template_is_refused_for_the_other(raw, chat, tmp_path):
    write_record(tmp_path / "e", "ft-l", chat, {})
    assert read_record(tmp_path / "e", "ft-l", chat)["model"]["template"] == "chat"
    with pytest.raises(SetupError, match=r"prompts in the chat template, and .* --template chat"):
        read_record(tmp_path / "e", "ft-l", raw)
    write_record(tmp_path / "e", "ft-l", raw, {})
    assert "template" not in read_record(tmp_path / "e", "ft-l", raw)["model"]
    with pytest.raises(AttribError, match="--template raw"):
        load_editor(tmp_path / "e", chat)

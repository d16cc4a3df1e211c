"""`--processor`: a model whose processor is in another place."""

import shutil

import pytest
import torch
from conftest import examples, save_tiny, tiny_vlm

import attrib
from attrib.errors import SetupError

WEIGHTS = ("config.json", "generation_config.json", "model.safetensors")


@pytest.fixture(scope="module", params=["llava", "blip2_opt", "qwen2_vl"])
def parted(request, tmp_path_factory):
    """A folder of weights, a folder of the processor's files, and the architecture's name."""
    root = tmp_path_factory.mktemp(request.param)
    save_tiny(root / "model", request.param)
    (root / "processor").mkdir()
    for file in (root / "model").iterdir():
        if file.name not in WEIGHTS:
            shutil.move(file, root / "processor")
    return root / "model", root / "processor", request.param


def test_the_model_with_its_processor_is_the_whole_one(parted):
    model, processor, name = parted
    vlm, whole = attrib.load(model, processor=processor), tiny_vlm(name)
    batch, other = (one.encode(*examples()) for one in (vlm, whole))
    assert torch.equal(batch.inputs["input_ids"], other.inputs["input_ids"])
    torch.testing.assert_close(vlm.logits(batch), whole.logits(other))
    assert vlm.name == str(model)


def test_without_it_the_error_says_what_to_give(parted):
    with pytest.raises(SetupError, match=r"cannot load its processor.*--processor NAME_OR"):
        attrib.load(parted[0])


def test_a_place_without_a_processor_is_refused_by_name(parted, tmp_path):
    for given, told in (
        (tmp_path, "none of processor_config.json.* is there"),
        (tmp_path / "gone", "no such folder"),
        ("gone", "no such folder"),
    ):
        with pytest.raises(SetupError, match=f"--processor {given}: {told}"):
            attrib.load(parted[0], processor=given)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(SetupError, match=f"--processor {tmp_path}: cannot load its processor"):
        attrib.load(parted[0], processor=tmp_path)


def test_a_processor_is_named_on_the_command_line_and_in_the_manifest(parted, run, tmp_path):
    model, processor, _ = parted
    given = ("--model", model, "--processor", processor, "--prompt", "What is it?", "--out", "o")
    code, _, err = run("attention", *given)
    assert code == 0, err
    assert f'"processor": "{processor}"' in (tmp_path / "o" / "manifest.json").read_text()

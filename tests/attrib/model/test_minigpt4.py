"""MiniGPT-4 from parts: every weight where it belongs, and parts that do not fit refused."""

import pytest
import tiny_models
import torch
import transformers as tr
from conftest import examples

import attrib
from attrib.errors import SetupError
from attrib.model.minigpt4 import assemble_minigpt4


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A language model in two pickled shards, a BLIP-2 with another one, a linear layer."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    llm = tr.LlamaForCausalLM(tiny_models.llama(vocab_size=259))  # a token for images is new
    (root / "vicuna").mkdir()
    weights = list(llm.state_dict().items())
    for i, shard in enumerate((dict(weights[:9]), dict(weights[9:]))):
        torch.save(shard, root / "vicuna" / f"pytorch_model-0000{i + 1}-of-00002.bin")
    llm.config.save_pretrained(root / "vicuna")
    words = tiny_models.tokenizer(special=("<pad>", "<s>", "</s>"))
    words.save_pretrained(root / "vicuna")
    blip2, processor = tiny_models.build("blip2_opt")
    blip2.save_pretrained(root / "blip2", max_shard_size="100KB")
    processor.save_pretrained(root / "blip2")
    linear = {"llama_proj.weight": torch.randn(64, 32), "llama_proj.bias": torch.randn(64)}
    torch.save({"model": linear}, root / "prerained_minigpt4_7b.pth")
    return root, llm, blip2, linear


def assembled(root, out, **changes):
    given = {"llm": root / "vicuna", "blip2": root / "blip2", "out": out,
             "projection": root / "prerained_minigpt4_7b.pth", "dtype": torch.float32}  # fmt: skip
    return assemble_minigpt4(**given | changes)


def test_every_weight_is_its_parts(parts, tmp_path):
    root, llm, blip2, linear = parts
    vlm = attrib.load(str(assembled(root, tmp_path / "minigpt4")))
    assert vlm.components.image_token_id == 259
    assert vlm.model.get_input_embeddings().weight.shape == (260, 64)
    ours = vlm.model.state_dict()
    for name, value in llm.state_dict().items():
        assert torch.equal(ours[f"language_model.{name}"][: len(value)], value)
    theirs = blip2.state_dict()
    vision = [n for n in theirs if n.startswith(("vision_model.", "qformer.", "query_tokens"))]
    assert all(torch.equal(ours[name], theirs[name]) for name in vision)
    assert torch.equal(ours["language_projection.weight"], linear["llama_proj.weight"])
    assert torch.equal(ours["language_projection.bias"], linear["llama_proj.bias"])
    assert len(ours) == len(llm.state_dict()) + len(vision) + 2


def test_what_is_assembled_answers(parts, tmp_path):
    vlm = attrib.load(str(assembled(parts[0], tmp_path / "m", dtype=torch.float16)))
    batch = vlm.encode(*examples())
    assert batch["visual"].sum(1).tolist() == [6, 0, 6]
    assert len(vlm.generate(batch, max_new_tokens=2)) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_assembled_in_float16_passes_in_half_precision(parts, tmp_path, dtype):
    folder = assembled(parts[0], tmp_path / "m", dtype=torch.float16)
    vlm = attrib.load(str(folder), dtype=dtype)  # verified
    assert vlm.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": "nowhere"}, "nowhere: no config.json"),
        ({"projection": "vicuna/pytorch_model-00001-of-00002.bin"}, "no llama_proj.weight"),
        ({"blip2": "vicuna"}, "vicuna: llama is not blip-2"),
        ({"llm": "blip2"}, "blip2: blip-2 is not llama"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, tmp_path, changes, message):
    root = parts[0]
    changes = {name: root / value for name, value in changes.items()}
    with pytest.raises(SetupError, match=message):
        assembled(root, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_model_is_not_overwritten(parts, tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(SetupError, match="there is a model already"):
        assembled(parts[0], tmp_path)

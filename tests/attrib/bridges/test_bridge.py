"""A bridge shares the weights of a model and leaves the model alone; the way back is exact."""

import copy

import pytest
import torch
import transformers as tr
from bridged import assert_near, batch_of, bridge_of
from conftest import examples, tiny_vlm
from tiny_models import IMAGE, VISION, llama
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from attrib.bridges.adapters import VisionLanguageAdapter, shared_copy
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import write
from attrib.model.vlm import VLM


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def bridge_logits(bridge, batch):
    inputs = dict(batch.inputs)
    return bridge(inputs.pop("input_ids"), **inputs)


def state(vlm):
    """All that bridging could change about a model, and its tokenizer."""
    model = vlm.model
    modules = dict(model.named_modules())
    return {
        "tensors": {name: id(x) for name, x in model.state_dict(keep_vars=True).items()},
        "versions": [x._version for x in model.state_dict(keep_vars=True).values()],
        "modules": {name: (id(m), type(m)) for name, m in modules.items()},
        "attributes": {name: set(vars(m)) for name, m in modules.items()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()),
        "attention": {
            name: getattr(getattr(m, "config", None), "_attn_implementation", None)
            for name, m in modules.items()
        },
        "config": model.config.to_dict(),
        "tokenizer": (len(vlm.tokenizer), dict(vlm.tokenizer.special_tokens_map)),
    }


def test_the_model_is_left_alone(different_vlm):
    batch = batch_of(different_vlm.name)
    logits, before = different_vlm.logits(batch), state(different_vlm)
    bridge = different_vlm.to_bridge()
    bridge_logits(bridge, batch)
    assert state(different_vlm) == before
    assert torch.equal(different_vlm.logits(batch), logits)
    bridge.enable_compatibility_mode(disable_warnings=True)
    bridge_logits(bridge, batch)
    assert state(different_vlm) == before
    assert torch.equal(different_vlm.logits(batch), logits)


def test_bridging_the_model_itself_would_have_been_noticed():
    vlm = tiny_vlm("llava")
    copied = VLM(copy.deepcopy(vlm.model), vlm.processor)
    before = state(copied)  # has run no forward pass, and so no hooks of transformers' own
    name, config = type(copied.model).__name__, copied.model.config
    build_bridge_from_module(copied.model, name, hf_config=config)
    after = state(copied)
    assert {key for key in before if before[key] != after[key]} >= {
        "tensors", "modules", "attributes", "attention",
    }  # fmt: skip


def test_there_and_back_is_the_same_model_to_the_last_bit(different_vlm):
    batch = batch_of(different_vlm.name)
    theirs = bridge_of(different_vlm.name).original_model.parameters()
    assert {id(x) for x in theirs} == {id(x) for x in different_vlm.model.parameters()}
    back = VLM.from_bridge(bridge_of(different_vlm.name))
    assert back.name == different_vlm.name
    assert back.processor is different_vlm.processor
    assert state(back)["tensors"] == state(different_vlm)["tensors"]
    kinds = [[type(m) for m in vlm.model.modules()] for vlm in (back, different_vlm)]
    assert kinds[0] == kinds[1]
    assert torch.equal(back.logits(batch), different_vlm.logits(batch))
    assert back.generate(batch, max_new_tokens=3) == different_vlm.generate(batch, max_new_tokens=3)
    before = bridge_of(different_vlm.name)
    assert_near(bridge_logits(before, batch)[batch["last"]], back.logits(batch)[batch["last"]])


def test_hooks_on_hook_points_stay_with_the_bridge():
    vlm, batch = tiny_vlm("llava"), batch_of("llava")
    bridge = vlm.to_bridge()
    before = bridge_logits(bridge, batch)
    bridge.add_hook("blocks.1.hook_resid_post", lambda h, hook: h * 0)  # noqa: ARG005
    assert (bridge_logits(bridge, batch) - before).abs().max() > 1e-2
    assert torch.equal(VLM.from_bridge(bridge).logits(batch), vlm.logits(batch))


def test_processed_weights_do_not_come_back():
    bridge = tiny_vlm("llava").to_bridge()
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    VLM.from_bridge(bridge)
    bridge.process_weights()
    with pytest.raises(AttribError, match=r"weights are processed .* before enable_compatibility"):
        VLM.from_bridge(bridge)


def test_a_write_that_is_open_is_on_the_bridge_too():
    vlm, batch = tiny_vlm("llava"), batch_of("llava")
    with write(vlm, 1, torch.zeros_like, batch["text"]):
        written, bridge = vlm.logits(batch), vlm.to_bridge()
    assert_near(bridge_logits(bridge, batch)[batch["last"]], written[batch["last"]])
    assert (written - vlm.logits(batch)).abs().max() > 1e-2


def test_weights_written_in_place_show_in_both():
    vlm = VLM(copy.deepcopy(tiny_vlm("llava").model), tiny_vlm("llava").processor)
    batch = batch_of("llava")
    bridge, before = vlm.to_bridge(), vlm.logits(batch)
    bridge.blocks[0].mlp.out.weight.mul_(0)
    assert not torch.equal(vlm.logits(batch), before)
    assert_near(bridge_logits(bridge, batch)[batch["last"]], vlm.logits(batch)[batch["last"]])


def test_an_architecture_that_nobody_has_an_adapter_for_is_bridged_by_its_structure():
    config = tr.VipLlavaConfig(
        vision_config=tr.CLIPVisionConfig(**VISION), text_config=llama(), image_token_index=IMAGE,
        vision_feature_layers=[-1, -2], image_seq_length=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tr.VipLlavaForConditionalGeneration(config).eval()
    vlm = VLM(model, tiny_vlm("llava").processor)
    batch = vlm.encode(*examples())
    bridge = vlm.to_bridge()
    assert isinstance(bridge.adapter, VisionLanguageAdapter)
    assert_near(bridge_logits(bridge, batch)[batch["last"]], vlm.logits(batch)[batch["last"]])
    assert torch.equal(VLM.from_bridge(bridge).logits(batch), vlm.logits(batch))


def test_a_model_without_processor_can_be_bridged():
    bare = VLM(tiny_vlm("blip2_opt").model, name="bare")
    bridge = bare.to_bridge()
    assert bridge.tokenizer is None
    assert bridge.processor is None
    assert VLM.from_bridge(bridge).name == "bare"


def test_an_unknown_text_model_is_named():
    vlm = VLM(shared_copy(tiny_vlm("smolvlm").model))
    vlm.model.config.get_text_config().model_type = "strange"
    with pytest.raises(SetupError, match="no adapter for its text model 'strange'"):
        vlm.to_bridge()

"""Edits of a model with LoRA are those of the merged model, and leave its adapters alone."""

import copy

import peft
import pytest
import tiny_models
import torch
from inner_edits import BOTH, asked, assert_restored, logits, loss, state
from tiny_edits import samples

from attrib.errors import SetupError
from attrib.model.vlm import VLM
from editors.base import encode_requests
from editors.methods.finetune import FTL, FTV
from editors.methods.lte_objective import LowRank
from editors.methods.transformer_patcher import TransformerPatcher
from editors.weights.components import matrices_of, mlp_of
from editors.weights.low_rank import LowRankEdit
from editors.weights.passes import LowRankUpdate, partial_forward, token_gradients

# peft asks transformers in a way that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TARGETS = r".*(q_proj|v_proj|fc1|fc2|up_proj|gate_proj|down_proj|linear_1|attention.query)"


def both(name, **settings):
    """A tiny model with LoRA, and the same one merged."""
    model, processor = tiny_models.build(name)
    torch.manual_seed(0)
    config = peft.LoraConfig(init_lora_weights=False, target_modules=TARGETS, **settings)
    model = peft.get_peft_model(model, config).eval()
    merged = copy.deepcopy(model).merge_and_unload()
    return VLM(model, processor), VLM(merged.requires_grad_(False), processor)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("editor", [FTV, FTL])
def test_fine_tuning_with_adapters_is_that_of_the_merged_model(name, editor, tmp_path):
    vlm, merged = both(name)
    before, plain = state(vlm), loss(vlm, asked())
    ours, theirs = (
        editor.train(one, out=tmp_path, steps=3, learning_rate=1e-3).edit(one, asked())
        for one in (vlm, merged)
    )
    assert_restored(vlm, before)
    assert not any("lora" in key for key in ours.weights)
    assert {key.replace(".base_layer", "") for key in ours.weights} == set(theirs.weights)
    close(logits(vlm, asked(), ours), logits(merged, asked(), theirs))
    assert loss(vlm, asked(), ours) < plain
    assert_restored(vlm, before)


@pytest.mark.parametrize("name", BOTH)
def test_updates_made_of_gradients_are_those_of_the_merged_model(name):
    changed = []
    for vlm in both(name):
        before, matrices = state(vlm), matrices_of(vlm, [2, 3], "all")
        batch = encode_requests(vlm, [asked()])
        run = partial_forward(vlm, batch, 2)
        grads = token_gradients(vlm, matrices, run, batch.labels)
        updates = {key: LowRankUpdate(-0.01 * g.delta, g.x) for key, g in grads.items()}
        edit = LowRankEdit.of(matrices, updates)
        changed.append(logits(vlm, asked(), edit))
        assert_restored(vlm, before)
        assert not torch.allclose(changed[-1], logits(vlm, asked()), atol=1e-2)
    close(*changed)


def test_neurons_and_low_rank_additions_go_beside_the_adapters(tmp_path):
    vlm, merged = both("llava")
    before, modules = state(vlm), [name for name, _ in vlm.model.named_modules()]
    quick = {"steps": 5, "preset": "embedded"}
    ours, theirs = (
        TransformerPatcher.train(one, samples(4), out=tmp_path / str(i), **quick).edit(one, asked())
        for i, one in enumerate((vlm, merged))
    )
    close(logits(vlm, asked(), ours), logits(merged, asked(), theirs))
    assert not torch.allclose(logits(vlm, asked(), ours), logits(vlm, asked()), atol=1e-2)
    change = LowRank(vlm, [1, 2], 4, 4.0, seed=1)
    for part in change.parts.values():
        torch.nn.init.normal_(part["up"].weight)
    plain = logits(vlm, asked())
    with change.applied(vlm):
        assert not torch.allclose(logits(vlm, asked()), plain, atol=1e-2)
    assert torch.equal(logits(vlm, asked()), plain)
    assert [name for name, _ in vlm.model.named_modules()] == modules
    assert_restored(vlm, before)


def test_weights_below_adapters_that_do_not_add_are_refused():
    vlm, merged = both("llava", use_dora=True)
    with pytest.raises(SetupError, match=r"layer 1: .*_proj has an adapter .*merge_and_unload"):
        mlp_of(vlm, 1)
    assert mlp_of(merged, 1).gate is not None

"""Residual writes are what the submodules return, and they add up."""

import pytest
import torch
from conftest import examples, tiny_vlm

from attrib.errors import AttribError
from attrib.forward.residual import residual_writes


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_residual_writes_are_what_the_submodules_return():
    names = {"llava": ("self_attn", "mlp"), "blip2_opt": ("self_attn", "fc2")}
    names["gemma3"] = ("post_attention_layernorm", "post_feedforward_layernorm")
    for name, children in names.items():
        vlm = tiny_vlm(name)
        batch = vlm.encode(*examples(), padding_side="left")
        seen = {}
        handles = [
            getattr(vlm.layers[2], child).register_forward_hook(
                lambda _m, _a, out, into=seen, child=child: into.update({child: out})
            )
            for child in children
        ]
        with residual_writes(vlm, batch["last"]) as writes:
            vlm.logits(batch)
        for handle in handles:
            handle.remove()
        for child, ours in zip(children, (writes.attn, writes.mlp), strict=True):
            out = seen[child][0] if isinstance(seen[child], tuple) else seen[child]
            assert torch.equal(ours[:, 2], out.reshape(3, -1, 64)[:, -1]), (name, child)


def test_writes_between_layers_are_found_where_they_occur():
    vlm = tiny_vlm("qwen3_vl")  # adds visual features after its first two layers
    batch = vlm.encode(*examples(), padding_side="left")
    for span, expected in (("visual", [True, True, False, False]), ("last", [False] * 4)):
        with residual_writes(vlm, batch[span].int().argmax(1)) as writes:
            vlm.logits(batch)
        assert writes.between_layers.abs().amax((0, 2)).bool().tolist() == expected


def test_a_layer_with_another_wiring_is_named(vlm, batch):
    def third(_module, _args, output):
        return (output[0] if isinstance(output, tuple) else output).tanh()

    handle = vlm.layers[3].register_forward_hook(third)
    with (
        pytest.raises(AttribError, match=r"layer 3: no one to 3 of its submodules \['.*self_attn"),
        residual_writes(vlm, batch["last"]),
    ):
        vlm.logits(batch)
    handle.remove()


def test_positions_are_checked(vlm, batch):
    with pytest.raises(AttribError, match="expected one True per row"):
        residual_writes(vlm, batch["text"]).__enter__()
    num_pos = batch["text"].shape[1]
    with (
        pytest.raises(AttribError, match=f"position {num_pos}: the pass has positions 0 to"),
        residual_writes(vlm, torch.tensor([0, 1, num_pos])),
    ):
        vlm.logits(batch)
    with (
        residual_writes(vlm, batch["last"]) as writes,
        pytest.raises(AttribError, match="run one forward pass inside"),
    ):
        _ = writes.attn

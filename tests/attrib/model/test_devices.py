"""Models split over devices or offloaded give the numbers of whole ones, in every analysis."""

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from logical_devices import CPU, DeviceMismatch, logical_devices, offloaded, place, split
from torch.testing import assert_close

import attrib
from attrib.analyses.contributions import measure_contributions
from attrib.analyses.direct_logits import direct_logits
from attrib.analyses.gating import gate_states
from attrib.analyses.visual_tokens import gradient_times_input
from attrib.data import EditRequest, EditSample
from attrib.forward import memory
from attrib.model.devices import each_weight

PROMPTS = ["What is red?", "How very very red?"]


def moved(values):
    return torch.as_tensor(values).detach().cpu()


def numbers(vlm):
    """What every analysis makes of a model, on the CPU."""
    mixed = vlm.encode(*examples(), padding_side="left")
    batch, other = (
        vlm.encode([picture(seed=seed), picture(60, 50, seed=seed + 1)], PROMPTS) for seed in (0, 2)
    )
    targets = vlm.encode(*examples(), targets=["cat", "a", "dogs"], padding_side="right")
    layer = vlm.num_layers - 2
    with attrib.write(vlm, layer, lambda h: h * 1.5, at=mixed["text"]), attrib.read(vlm) as hidden:
        written = vlm.logits(mixed)
    found = {
        "logits": vlm.logits(mixed),
        "last_logits": vlm.last_logits(mixed),
        "written": written,
        "hidden": hidden[layer],
        "attention": attrib.attention(vlm, mixed),
        "heatmaps": attrib.heatmaps(vlm, mixed, draws=2),
        "heatmaps of the code": attrib.heatmaps(vlm, mixed, site="attention", unit="abs"),
        "gold": attrib.contributions(vlm, targets, key="gold"),
        "shares": direct_logits(vlm, mixed).total,
        "gate": gate_states(vlm, targets),
        "gradients": gradient_times_input(vlm, mixed),
        "patching": attrib.patching(vlm, batch, other).difference,
    }
    for norm in ("none", "final", "frozen"):
        found[f"contributions, {norm}"] = attrib.contributions(vlm, mixed, norm=norm)
    for modality in ("text", "visual", "both"):
        found[f"sensitivity, {modality}"] = attrib.sensitivity(
            vlm, mixed, modality, sigmas=(0.0, 0.5), unit="std" if modality == "both" else "abs"
        )
    return {name: moved(value) for name, value in found.items()}


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        wrong = f"{name}: {{}}".format
        assert_close(value, expected[name], rtol=1e-6, atol=1e-6, equal_nan=True, msg=wrong)


@pytest.fixture(scope="module", params=["llava", "blip2_opt", "qwen3_vl"])
def expected(request):
    return request.param, numbers(tiny_vlm(request.param))


def test_an_offloaded_model_has_the_numbers_of_a_whole_one(expected, tmp_path):
    name, values = expected
    vlm = offloaded(tiny_vlm(name), "cpu" if name == "blip2_opt" else "disk", tmp_path)
    assert {weight.device.type for weight in vlm.model.parameters()} == {"meta"}
    assert vlm.device == CPU
    same(numbers(vlm), values)
    assert {weight.device.type for weight in vlm.model.parameters()} == {"meta"}
    for weight, value in each_weight(vlm.model):
        assert torch.equal(value, tiny_vlm(name).model.get_parameter(weight))


def test_a_split_model_has_the_numbers_of_a_whole_one(expected, monkeypatch):
    name, values = expected
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 2**30)
    kind = "mps" if name == "llava" else "xpu"  # the former has no float64
    vlm = split(tiny_vlm(name), f"{kind}:0", f"{kind}:1")
    with logical_devices() as mode:
        assert str(vlm.device) == f"{kind}:0"
        found = numbers(vlm)
    if kind == "mps":  # there divergences are sums in float32
        for one in [one for one in found if one.startswith("sensitivity")]:
            assert_close(found.pop(one), values[one], rtol=1e-4, atol=1e-5, equal_nan=True)
    same(found, {one: values[one] for one in found})
    assert mode.calls.keys() >= {torch.device(f"{kind}:0"), torch.device(f"{kind}:1")}


@pytest.mark.parametrize("make", [
    lambda: torch.zeros(1, dtype=torch.float64, device="mps:0"),
    lambda: torch.zeros(1).double().to("mps:0"),
    lambda: place(torch.ones(2), "mps:0").double(),
])  # fmt: skip
def test_a_logical_device_without_float64_refuses_it(make):
    with logical_devices(), pytest.raises(TypeError, match="mps has no float64"):
        make()


def test_tables_are_made_without_float64_on_the_device():
    asked = zip((picture(seed=0), picture(seed=1)), PROMPTS, strict=True)
    samples = [EditSample(f"{i}", EditRequest(*one, "red")) for i, one in enumerate(asked)]

    def table(vlm):
        batch = vlm.encode([s.request.image for s in samples], PROMPTS)
        made = measure_contributions(vlm, batch, samples, key="argmax", norm="none")
        return made["contributions"]

    whole, vlm = table(tiny_vlm("llava")), split(tiny_vlm("llava"), "mps:0", "mps:1")
    with logical_devices():
        assert table(vlm).equals(whole)


def test_logical_devices_refuse_to_mix():
    with logical_devices():
        a, b = place(torch.ones(2), "xpu:0"), torch.ones(2, device="xpu:1")
        with pytest.raises(DeviceMismatch, match="several devices"):
            _ = a + b
        assert torch.equal((a + b.to(a)).cpu(), torch.full((2,), 2.0))


def test_an_offloaded_model_generates_the_same(tmp_path):
    whole = tiny_vlm("blip2_opt")  # with biases
    vlm = offloaded(whole, "disk", tmp_path)
    batch = vlm.encode(*examples(), padding_side="left")
    assert vlm.generate(batch, max_new_tokens=3) == whole.generate(batch, max_new_tokens=3)
    cached, original = vlm.cache(batch), whole.cache(batch)
    assert cached.keys() == original.keys()
    for key in original:
        assert_close(cached[key], original[key], equal_nan=True)
    for read in (
        lambda one: one.model.W_U, lambda one: one.model.b_U,
        lambda one: one.model.tokens_to_residual_directions([3, 5]),
        lambda one: one.logit_attrs(one["blocks.1.hook_attn_out"], [3, 5, 7]),
        lambda one: one.stack_head_results(),
    ):  # fmt: skip
        assert_close(read(cached), read(original), equal_nan=True)

"""Every claim holds on every architecture, and each notices a wrapper that breaks it."""

from contextlib import contextmanager

import pytest
import torch
from conftest import tiny_vlm

from attrib.checks import claims
from attrib.checks import run as conformance
from attrib.errors import SetupError
from attrib.forward.attention import AttentionCall
from attrib.forward.hooks import read, write
from attrib.forward.replay import logits_from
from attrib.forward.residual import ResidualWrites
from attrib.model import encoding
from attrib.model import vlm as wrapper
from attrib.model.batch import Grid
from attrib.model.components import FrozenNorm
from attrib.model.vlm import VLM


def test_every_claim_holds(any_vlm):
    assert [result for result in conformance.check(any_vlm) if not result.passed] == []


def test_a_result_says_what_was_measured():
    results = conformance.check(tiny_vlm("llava"))
    assert len(results) == len(conformance.CHECKS)
    assert results[1].claim == "hooked logits equal plain ones"
    assert results[1].detail.startswith("logits differ by ")


# What goes wrong, and the claim that says so. `p` patches an attribute for the test.


def _text_is_everything(p):
    spans_of = wrapper.spans_of

    def broken(*args):
        spans = spans_of(*args)
        return spans | {"text": spans["text"] | spans["visual"]}

    p.setattr(wrapper, "spans_of", broken)


@contextmanager
def _disturbing(vlm, layers=None):
    everywhere = torch.ones(3, 1, dtype=torch.bool)
    with read(vlm, layers) as hidden, write_anywhere(vlm, 0, lambda h: h * 1.01, everywhere):
        yield hidden


@contextmanager
def write_anywhere(vlm, layer, fn, _at):
    handle = vlm.layers[layer].register_forward_hook(lambda _m, _a, out: fn(out))
    yield
    handle.remove()


@contextmanager
def _staying(vlm, layers=None):
    for layer in vlm.layers:
        layer.register_forward_hook(lambda _m, _a, _out: None)
    with read(vlm, layers) as hidden:
        yield hidden


@contextmanager
def _twice(vlm, layer, fn, at):
    with write(vlm, layer, fn, at), write(vlm, layer, fn, at):
        yield


def _visible_padding(p):
    pad_rows = encoding.pad_rows

    def broken(*args, **settings):
        padded = pad_rows(*args, **settings)
        return padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}

    p.setattr(wrapper, "pad_rows", broken)


def _unnormed_share(p):
    p.setattr(FrozenNorm, "__call__", lambda _self, write: write.float())


BREAKS = {
    "spans partition the prompt": _text_is_everything,
    "hooked logits equal plain ones": lambda p: p.setattr(claims, "read", _disturbing),
    "unembedded last output is the logits": lambda p: p.setattr(
        VLM, "unembed", lambda self, h: self.parts.head(h)
    ),
    "residual writes add up": lambda p: p.setattr(ResidualWrites, "extra", property(lambda _s: 0)),
    "frozen contributions add up to the logit": _unnormed_share,
    "write is confined to its span": lambda p: p.setattr(claims, "write", write_anywhere),
    "hooks are gone after an error": lambda p: p.setattr(claims, "read", _staying),
    "attention rows are the models": lambda p: p.setattr(
        AttentionCall, "row", lambda self, _q: (self.q @ self.q.mT).softmax(-1)[:, :, -1]
    ),
    "resume is bit equal": lambda p: p.setattr(
        claims, "resume", lambda vlm, c, layer, h: logits_from(vlm, c, layer, h * 1.000001)
    ),
    "one example equals a batch": _visible_padding,
    "padding side does not matter": _visible_padding,
    "generation does not depend on the batch": lambda p: p.setattr(
        wrapper, "left_padded", lambda inputs, _pad_id: inputs
    ),
    "generation writes the prompt once": lambda p: p.setattr(claims, "write", _twice),
    "grids fit the visual tokens": lambda p: p.setattr(
        wrapper, "grid_finder", lambda *_: lambda *_: Grid(9, 9, (0, 0, 9, 9))
    ),
}


@pytest.mark.parametrize("claim", BREAKS)
def test_every_claim_notices_when_it_is_broken(claim, monkeypatch):
    shared = tiny_vlm("qwen3_vl")
    vlm = VLM(shared.model, shared.processor)
    hooks = [(m, dict(m._forward_hooks)) for m in vlm.model.modules()]
    check = next(c for c in conformance.CHECKS if c.__name__ == claim.replace(" ", "_"))
    assert conformance.check(vlm, (check,))[0].passed
    BREAKS[claim](monkeypatch)
    broken = VLM(shared.model, shared.processor)
    result = conformance.check(broken, (check,))[0]
    for module, before in hooks:
        module._forward_hooks.clear()
        module._forward_hooks.update(before)
    assert (result.claim, result.passed) == (claim, False)


def test_every_claim_has_been_broken():
    assert set(BREAKS) == {check.__name__.replace("_", " ") for check in conformance.CHECKS}


def test_verification_refuses_with_the_claim_and_the_number(monkeypatch):
    vlm = VLM(tiny_vlm("llava").model, tiny_vlm("llava").processor, "my-model")
    vlm.verify()
    BREAKS["unembedded last output is the logits"](monkeypatch)
    with pytest.raises(
        SetupError, match=r"my-model cannot be used: unembedded .* logits differ by"
    ):
        vlm.verify()


def test_an_error_in_a_check_is_a_finding():
    results = conformance.check(VLM(tiny_vlm("llava").model, name="bare"))
    assert not any(result.passed for result in results)
    assert results[0].detail == "bare has no processor: give one, VLM(model, processor)"

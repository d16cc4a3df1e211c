"""Every check passes on every architecture, and each one notices a wrapper that breaks it."""

from contextlib import ExitStack, contextmanager

import pytest
import tiny_models
import torch
from conftest import ARCHITECTURES, tiny_vlm

import attrib
from attrib.checks import CHECKS, QUICK, check, checks, continued, inputs, verify
from attrib.errors import SetupError
from attrib.forward.attention import AttentionCall
from attrib.forward.hooks import on_input, read, write
from attrib.forward.replay import logits_from
from attrib.forward.residual import ResidualWrites
from attrib.forward.suffix import Suffix
from attrib.model import encoding, pictures
from attrib.model import vlm as wrapper
from attrib.model.answers import generated_ids
from attrib.model.batch import Grid
from attrib.model.logits import FrozenNorm
from attrib.model.vlm import VLM


def test_every_check_passes(any_vlm):
    assert check(any_vlm).failed == ()


def test_all_architectures_that_are_built_are_checked():
    assert set(ARCHITECTURES) == set(tiny_models.BUILDERS)


def test_a_report_is_a_table_of_what_was_measured():
    report = attrib.check(tiny_vlm("llava"))
    frame = report.to_frame()
    assert frame.columns.tolist() == ["check", "passed", "detail"]
    assert len(frame) == len(CHECKS) and report.passed and frame["passed"].all()
    assert frame["check"][1] == "hooked logits equal plain ones"
    assert frame["detail"][1].startswith("logits differ by ")
    assert repr(report) == f"llava: {len(CHECKS)} of {len(CHECKS)} checks passed"
    assert "<td>hooked logits equal plain ones</td>" in report._repr_html_()


def test_checks_share_their_passes():
    """A pass over a model of full size takes minutes: cost in passes over the batch of examples."""
    vlm = VLM(tiny_vlm("llava").model, tiny_vlm("llava").processor)
    size = inputs.CheckInputs(vlm).batch["text"].numel() * vlm.num_layers
    seen = []
    with ExitStack() as stack:
        for layer in vlm.layers:
            stack.enter_context(on_input(layer, lambda h, *_: seen.append(h[..., 0].numel())))
        assert check(vlm, QUICK).passed
        assert sum(seen) == 3 * size  # plain, inside all contexts, written
        seen.clear()
        # Besides: a replay and its last layer, padded on the right, three that generate; a replay
        # and a suffix, verified once, on changed states, with the pass of each.
        assert check(vlm).passed and sum(seen) < 14 * size


# What goes wrong, and the check that fails. `p` patches an attribute for the test.


def _text_is_everything(p):
    token_spans = wrapper.token_spans

    def broken(*args):
        spans = token_spans(*args)
        return spans | {"text": spans["text"] | spans["visual"]}

    p.setattr(wrapper, "token_spans", broken)


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

    p.setattr(encoding, "pad_rows", broken)


def _second_best(*given):
    best = generated_ids(*given[:-2], 1, {})[:, -1:]
    banned = {"bad_words_ids": best.tolist()}
    return generated_ids(*given[:-1], banned | given[-1])


def _unnormed_share(p):
    p.setattr(FrozenNorm, "__call__", lambda _self, write: write.float())


BREAKS = {
    "spans partition the prompt": _text_is_everything,
    "hooked logits equal plain ones": lambda p: p.setattr(inputs, "read", _disturbing),
    "unembedded last output is the logits": lambda p: p.setattr(
        VLM, "unembed", lambda self, h: self.components.head(h)
    ),
    "residual writes add up": lambda p: p.setattr(
        ResidualWrites, "between_layers", property(lambda _s: 0)
    ),
    "frozen contributions add up to the logit": _unnormed_share,
    "write is confined to its span": lambda p: p.setattr(checks, "write", write_anywhere),
    "hooks are gone after an error": lambda p: p.setattr(inputs, "read", _staying),
    "attention rows are the models": lambda p: p.setattr(
        AttentionCall, "row", lambda self, _q: (self.q @ self.q.mT).softmax(-1)[:, :, -1]
    ),
    "resume is bit equal": lambda p: p.setattr(
        continued, "logits_from", lambda vlm, c, layer, h: logits_from(vlm, c, layer, h * 1.000001)
    ),
    "replayed changes equal written ones": lambda p: p.setattr(
        continued, "logits_from", lambda vlm, c, layer, h: logits_from(vlm, c, layer, h * 1.01)
    ),
    "suffixes equal whole passes": lambda p: p.setattr(
        Suffix, "_entering", lambda _s, h, _i, _rows: h
    ),
    "one example equals a batch": _visible_padding,
    "padding side does not matter": _visible_padding,
    "first generated token is the argmax": lambda p: p.setattr(
        wrapper, "generated_ids", _second_best
    ),
    "generation does not depend on the batch": lambda p: p.setattr(
        encoding, "pad_left", lambda inputs, _pad_id: inputs
    ),
    "generation writes the prompt once": lambda p: p.setattr(inputs, "write", _twice),
    "grids fit the visual tokens": lambda p: p.setattr(
        pictures, "grid_finder", lambda *_: lambda *_: Grid(9, 9, (0, 0, 9, 9))
    ),
    "each picture has its own tokens": lambda p: p.setattr(
        pictures.PictureFinder, "_divide", lambda _self, _sizes, total: [total - 1, 1]
    ),
}


@pytest.fixture(scope="module")
def passing():
    """A model that passes every check as long as nothing is broken."""
    shared = tiny_vlm("qwen3_vl")
    assert check(VLM(shared.model, shared.processor)).passed
    return shared


@pytest.mark.parametrize("name", BREAKS)
def test_every_check_fails_when_its_promise_is_broken(name, passing, monkeypatch):
    shared = passing
    hooks = [(m, dict(m._forward_hooks)) for m in shared.model.modules()]
    selected = [one for one in CHECKS if one.__name__ == name.replace(" ", "_")]
    BREAKS[name](monkeypatch)
    broken = VLM(shared.model, shared.processor)
    report = check(broken, selected)
    for module, before in hooks:
        module._forward_hooks.clear()
        module._forward_hooks.update(before)
    assert [result.check for result in report.failed] == [name]
    is_padding = name == "padding side does not matter"
    assert ("the model's logits depend on the padding" in report.failed[0].detail) == is_padding


def test_every_check_has_been_broken():
    assert set(BREAKS) == {one.__name__.replace("_", " ") for one in CHECKS}


def test_verification_names_the_check_and_the_number(monkeypatch):
    vlm = VLM(tiny_vlm("llava").model, tiny_vlm("llava").processor, "my-model")
    verify(vlm)
    BREAKS["unembedded last output is the logits"](monkeypatch)
    with pytest.raises(
        SetupError, match=r"my-model cannot be used: unembedded .* logits differ by"
    ):
        verify(vlm)
    assert "  failed: unembedded last output is the logits: logits" in repr(check(vlm))


def test_an_error_in_a_check_is_a_failed_check():
    report = check(VLM(tiny_vlm("llava").model, name="bare"))
    assert len(report.failed) == len(CHECKS) and not report.passed
    assert report.failed[0].detail == "bare has no processor: give one, VLM(model, processor)"
    assert len(repr(report).splitlines()) <= 10

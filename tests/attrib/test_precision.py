"""Half precision: nonsense is refused, and what follows the last layer is in float32."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import save_tiny
from torch.testing import assert_close

import attrib
from attrib.analyses import key_value_swap
from attrib.analyses.key_value_swap import LastQuery
from attrib.analyses.sensitivity import clean_pass
from attrib.checks import CHECKS, QUICK, check, checks, continued, inputs
from attrib.checks.inputs import _float32_attention as float32_attention
from attrib.forward import attention_replay, layer_call
from attrib.forward import suffix as suffixes
from attrib.forward.attention import AttentionCall, capture_attention
from attrib.forward.hooks import gather_positions, write
from attrib.forward.layer_call import KeyValues
from attrib.forward.replay import logits_from
from attrib.forward.suffix import Suffix
from attrib.model import encoding
from attrib.model.precision import (
    ONE_STEP,
    WHOLE_PASS,
    log_normalizer,
    main_dtype,
    token_directions,
)
from attrib.model.vlm import VLM
from attrib.runs.manifest import provenance_of
from benchmarks.precision import ANALYSES, curves, deviation

DTYPES = ("float32", "float16", "bfloat16")
# For faults: the limits of float16 are between theirs, and a fault is as large in each dtype.
EXTREMES = ("float32", "bfloat16")
MODELS = ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
ATTENTION = (checks.attention_rows_are_the_models,)
_loaded = {}


def loaded(name, dtype):
    if (name, dtype) not in _loaded:
        _loaded[name, dtype] = attrib.load(name, dtype=dtype, verify=False)
    vlm = _loaded[name, dtype]
    return VLM(vlm.model, vlm.processor, name)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", MODELS)
def test_the_embedded_models_pass_in_half_precision(name, dtype):
    vlm = loaded(name, dtype)
    selected = CHECKS if dtype == "bfloat16" else (*QUICK, *ATTENTION)  # QUICK are of CHECKS
    assert check(vlm, selected).failed == ()
    assert vlm.dtype == getattr(torch, dtype)


def test_the_decoder_and_not_the_first_parameter_has_the_models_dtype():
    vlm, data = (
        loaded("tiny-blip2", "float16"),
        attrib.data.load("scenes-vqa", split="test", limit=1),
    )
    assert vlm.model.dtype == torch.float32  # of the query tokens
    assert provenance_of(vlm, data, {}, 0)["model"]["dtype"] == "float16"
    assert "float16 on cpu" in repr(vlm)
    packed = [torch.zeros(9, dtype=torch.int8), torch.zeros(2, dtype=torch.float16)]
    assert main_dtype(packed) == torch.float16


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_instructblip_loads_in_half_precision(dtype, tmp_path):
    vlm = attrib.load(str(save_tiny(tmp_path, "instructblip")), dtype=dtype)  # verified
    assert vlm.dtype == getattr(torch, dtype)


# --- nonsense, in every dtype


@pytest.mark.parametrize("limits", [ONE_STEP, WHOLE_PASS])
def test_what_bfloat16_refuses_float16_refuses_too(limits):
    single, half, brain = (limits[getattr(torch, dtype)] for dtype in DTYPES)
    assert single < half < brain


def _always(change):
    def patch(p):
        logits = VLM.logits
        p.setattr(VLM, "logits", lambda self, batch: change(logits(self, batch)))

    return patch


def _other_head(p):
    row = AttentionCall.row
    p.setattr(AttentionCall, "row", lambda self, queries: row(self, queries).roll(1, 1))


def _one_off(p):
    def broken(vlm, layer, fn, at):
        return write(vlm, layer, fn, at.roll(-1, 1))

    p.setattr(checks, "write", broken)


def _writes_one_off(p):
    residual_writes = inputs.residual_writes

    def broken(vlm, positions):
        index = positions.int().argmax(1) if positions.dtype == torch.bool else positions
        return residual_writes(vlm, (index - 1).clamp(min=0))

    p.setattr(inputs, "residual_writes", broken)


def _other_examples(p):
    def broken(vlm, batch, **how):
        made = real(vlm, batch, **how)
        return made._replace(tokens=made.tokens.roll(1, 0), logits=made.logits.roll(1, 0))

    real = inputs.generated
    p.setattr(inputs, "generated", broken)


def _one_layer_late(p):
    p.setattr(continued, "logits_from", lambda vlm, c, i, h: logits_from(vlm, c, max(i, 0), h))


UNEMBEDDED = (checks.unembedded_last_output_is_the_logits,)
LOGITS = (checks.hooked_logits_equal_plain_ones, *UNEMBEDDED)
GENERATION = (continued.generation_does_not_depend_on_the_batch,)
NONSENSE = {
    "zero logits": (_always(torch.zeros_like), LOGITS),
    "rolled vocabulary": (_always(lambda logits: logits.roll(1, -1)), UNEMBEDDED),
    "zero unembedding": (
        lambda p: p.setattr(VLM, "unembed", lambda _s, h: h.new_zeros(*h.shape[:-1], 2)), UNEMBEDDED
    ),
    "row of another head": (_other_head, ATTENTION),
    "write one position off": (_one_off, (checks.write_is_confined_to_its_span,)),
    "residual writes one position off": (_writes_one_off, (checks.residual_writes_add_up,)),
    "a replay that leaves out a layer": (_one_layer_late, (continued.resume_is_bit_equal,)),
    "padding that stays on the right": (
        lambda p: p.setattr(encoding, "pad_left", lambda given, _pad_id: given), GENERATION
    ),
    "texts of other examples": (_other_examples, GENERATION),
}  # fmt: skip


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("fault", NONSENSE)
def test_nonsense_is_refused_in_every_dtype(fault, dtype, monkeypatch):
    patch, selected = NONSENSE[fault]
    vlm = loaded("tiny-llava", dtype)
    patch(monkeypatch)
    assert len(check(vlm, selected).failed) == len(selected)


def rotated_early(q):
    """Queries with the rotation of the position before."""
    angle = 10_000.0 ** -(torch.arange(0, q.shape[-1], 2) / q.shape[-1])
    cos, sin = (x.to(q.dtype).repeat(2) for x in (angle.cos(), -angle.sin()))
    first, second = q.chunk(2, -1)
    return q * cos + torch.cat([-second, first], -1) * sin


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_rotated_one_position_too_early_is_refused_in_every_head(dtype, monkeypatch):
    given, calls, real = inputs.CheckInputs(loaded("tiny-llava", dtype)), {}, capture_attention

    def keeping(vlm, listen):
        return real(vlm, lambda i, call: listen(i, calls.setdefault(i, call)))

    monkeypatch.setattr(inputs, "capture_attention", keeping)
    found, last = given.hooked, given.batch["last"].int().argmax(1)
    checks.attention_rows_are_the_models(given)
    for layer, call in calls.items():
        for head in range(call.q.shape[1]):
            q = call.q.clone()
            q[:, head] = rotated_early(q[:, head])
            wrong = replace(call, q=q)
            ours, exact = wrong.weighted_values(wrong.row(last)), float32_attention(wrong, last)
            changed = found.attention[layer]._replace(ours=ours, exact=exact)
            there = {**found.attention, layer: changed}
            given.__dict__["hooked"] = replace(found, attention=there)
            with pytest.raises(inputs.CheckFailed, match="outputs of a head differ by"):
                checks.attention_rows_are_the_models(given)


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("change", [torch.zeros_like, lambda x: x.roll(1, -1)])
def test_hooked_logits_that_are_nonsense_differ_from_plain_ones(dtype, change, monkeypatch):
    given = inputs.CheckInputs(loaded("tiny-llava", dtype))
    _ = given.plain
    _always(change)(monkeypatch)
    with pytest.raises(inputs.CheckFailed, match="logits differ by"):
        checks.hooked_logits_equal_plain_ones(given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_texts_may_part_where_two_tokens_tie_and_nowhere_else(dtype, monkeypatch):
    vlm, real = loaded("tiny-llava", dtype), inputs.generated
    limit, share = WHOLE_PASS[vlm.dtype], 0.0

    def nearly_tied(vlm, batch, **how):
        """The third token alone beats another by `share` of the largest logit, in a batch loses."""
        made = real(vlm, batch, **how)
        logits, rows, sign = made.logits.clone(), range(batch.size), (-1) ** (batch.size > 1)
        (top, _), (_, other) = (one.T for one in logits[:, 2].topk(2))
        logits[rows, 2, other] = top - sign * share * logits[:, 2].abs().amax()
        if batch.size > 1:  # another text goes on in another way
            logits[:, 3] = logits[:, 3].roll(1, -1)
        return made._replace(tokens=logits.argmax(-1), logits=logits)

    monkeypatch.setattr(inputs, "generated", nearly_tied)
    monkeypatch.setattr(continued, "generated", nearly_tied)
    share, given = limit / 8, inputs.CheckInputs(vlm)
    continued.generation_does_not_depend_on_the_batch(given)
    assert given.generated_alone[0].tokens[0, 2] != given.generated.tokens[0, 2]
    share = 3 * limit
    assert check(vlm, GENERATION).failed


# --- a suffix or a swap of keys and values that is wrong is not used, in any dtype


def with_dtypes(faults):
    """Each fault in the dtypes of the extreme limits; what is right in every dtype."""
    return [(fault, d) for fault in faults for d in (DTYPES if fault == "none" else EXTREMES)]


def one_off(call, start, stop, num_pos, like):
    late = int(start > 0)  # the suffix gets the positions one in front of its own
    return layer_call.slice_positions(call, start - late, stop - late, num_pos, like)


def other_heads(*given):
    kv = layer_call.keys_values(*given)
    return KeyValues(kv.keys.roll(1, 1), kv.values)


def other_rows(self, rows):
    return KeyValues(self.keys[(rows + 1) % 2], self.values[(rows + 1) % 2])


def before_the_last(self, h, rows):
    return gather_positions(h, self.last[rows] - 1)


SUFFIX_FAULTS = {
    "none": lambda _p: None,
    "positions one off": lambda p: p.setattr(suffixes, "slice_positions", one_off),
    "keys of other heads": lambda p: p.setattr(suffixes, "keys_values", other_heads),
    "keys of other examples": lambda p: p.setattr(KeyValues, "rows", other_rows),
    "no keys of earlier positions": lambda p: p.setattr(Suffix, "_prefix", lambda *_: None),
    "the state before the last": lambda p: p.setattr(Suffix, "_at_last", before_the_last),
}


@pytest.mark.parametrize(("fault", "dtype"), with_dtypes(SUFFIX_FAULTS))
def test_a_wrong_suffix_is_refused_in_every_dtype(fault, dtype, monkeypatch):
    vlm = loaded("tiny-llava", dtype)
    pictures = [s.request.image for s in attrib.data.load("scenes-vqa", split="test", limit=2)]
    batch = vlm.encode(pictures, ["What is it? Say what you see:"] * 2)
    clean = clean_pass(vlm, batch)
    SUFFIX_FAULTS[fault](monkeypatch)
    suffix = suffixes.build_suffix(clean, int(batch["text"].any(0).int().argmax()))
    assert (suffix.start > 0) == (fault == "none")


def changed_query(change):
    def patch(p):
        of = LastQuery.of.__func__
        p.setattr(LastQuery, "of", classmethod(lambda cls, *given: change(of(cls, *given))))

    return patch


def earlier_states(p):
    select = attention_replay._select_positions
    p.setattr(attention_replay, "_select_positions", lambda a, at, pos: select(a, at - 1, pos))


SWAP_FAULTS = {
    "none": lambda _p: None,
    "a query of other heads": changed_query(lambda one: replace(one, q=one.q.roll(1, 1))),
    "values of other positions": changed_query(lambda one: replace(one, v=one.v.roll(1, 2))),
    "twice the scale": changed_query(lambda one: replace(one, scaling=2 * one.scaling)),
    "rotated as one position before": earlier_states,
}


@pytest.mark.parametrize(("fault", "dtype"), with_dtypes(SWAP_FAULTS))
def test_a_wrong_swap_of_keys_and_values_is_refused_in_every_dtype(fault, dtype, monkeypatch):
    vlm, refused = loaded("tiny-llava", dtype), []
    picture = attrib.data.load("scenes-vqa", split="test", limit=1)[0].request.image
    SWAP_FAULTS[fault](monkeypatch)

    def one_by_one(record, _tokens, _site, perturbed, _neighbours):
        refused.append(record.layer)
        return record.out, torch.zeros_like(perturbed)

    monkeypatch.setattr(key_value_swap, "_one_by_one", one_by_one)
    attrib.heatmaps(vlm, vlm.encode([picture], ["What is it?"]))
    assert bool(refused) == (fault != "none")


# --- float32 after the last layer


def half_and_float32():
    """A model in bfloat16 and one of the same weights in float32, and a batch."""
    half = loaded("tiny-llava", "bfloat16")
    exact = VLM(copy.deepcopy(half.model).float(), half.processor, "exact")
    image = attrib.data.load("scenes-vqa", split="test", limit=1)[0].request.image
    return half, exact, half.encode([image], ["What is this? The answer is:"])


@torch.no_grad()
def test_the_last_row_is_unembedded_in_float32(monkeypatch):
    half, exact, batch = half_and_float32()
    clean = clean_pass(half, batch)
    h = gather_positions(clean.hidden[half.num_layers - 1], clean.last)
    monkeypatch.setattr("attrib.model.precision.CHUNK", 700 * half.d_model)  # several chunks
    assert_close(half.unembed_float32(h), exact.unembed(h.float()), rtol=1e-5, atol=1e-4)
    assert not torch.equal(half.unembed(h).float(), half.unembed_float32(h))
    logits = exact.components.head(h.float())
    normalizer = log_normalizer(half.components.head, h.float())
    assert_close(normalizer, logits.logsumexp(-1), rtol=1e-5, atol=1e-4)
    rows, bias = token_directions(half.components.head, torch.tensor([3, 5]))
    assert torch.equal(rows, exact.components.head.weight[[3, 5]]) and not bias.any()


def test_unembedding_in_float32_is_the_models_own_bit_for_bit(vlm, batch):
    with torch.no_grad(), attrib.read(vlm, [vlm.num_layers - 1]) as hidden:
        logits = vlm.logits(batch)
    assert torch.equal(vlm.unembed_float32(hidden[vlm.num_layers - 1]), logits)


def test_analyses_of_a_half_precision_model_return_float32():
    half, _, batch = half_and_float32()
    for values in (
        attrib.contributions(half, batch), attrib.sensitivity(half, batch, sigmas=[1.0]),
        attrib.heatmaps(half, batch), attrib.attention(half, batch),
    ):  # fmt: skip
        assert values.dtype == torch.float32 and values.isfinite().all()


@cache
def curves_of(analysis, dtype):
    samples = list(attrib.data.load("scenes-vqa", split="test", limit=4))
    return curves(loaded("tiny-blip2", dtype), samples, ANALYSES[analysis])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("analysis", ["direct logits", "attention, visual", "gradient times input"])
def test_layers_rank_as_in_float32(analysis, dtype):
    exact, half = curves_of(analysis, "float32"), curves_of(analysis, dtype)
    found = deviation(exact, half)
    assert found["rank_correlation_median"] >= 0.97
    assert found["relative_deviation_median"] < (0.01 if dtype == "float16" else 0.08)
    swapped = deviation(exact, exact[:, ::-1])
    assert swapped["rank_correlation_median"] < 0.9  # the bound can fail

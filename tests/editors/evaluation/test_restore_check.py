"""Checksums: every bit counts, on any device and in any type."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from editors.evaluation.reference_model import Checksum, NotRestored, digest, weighted_sum


class Small(nn.Module):
    """A few tensors of several types."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(3, 2)
        self.inner.weight.data = torch.randn(2, 3, generator=generator)
        self.rough = nn.Parameter(torch.randn(5, generator=generator).bfloat16())
        self.register_buffer("count", torch.tensor(3))


def changes(change):
    model = Small()
    before = Checksum.of(model)
    assert not before.changes(Checksum.of(model))
    change(model)
    return before.changes(Checksum.of(model))


def test_the_least_change_is_named():
    def last_bit(model):
        model.rough.data.view(torch.int16)[4] ^= 1

    def sign_of_zero(model):
        model.inner.bias.data[0] = 0.0

    assert changes(last_bit) == ["rough"]
    assert changes(lambda m: m.count.add_(1)) == ["count"]
    assert changes(sign_of_zero) == ["inner.bias"]
    assert changes(lambda m: m.inner.eval()) == ["module inner"]
    assert changes(lambda m: m.inner.register_forward_hook(lambda *_: None)) == ["module inner"]
    assert changes(lambda m: setattr(m, "rough", nn.Parameter(m.rough.float()))) == ["rough"]
    assert changes(lambda m: m.register_buffer("more", torch.zeros(1))) == ["more"]
    assert changes(lambda m: delattr(m, "rough")) == ["rough"]
    assert changes(lambda m: m.requires_grad_(False)) == []


def test_minus_zero_is_not_zero_and_nan_is_itself():
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert digest(torch.tensor([float("nan")])) == digest(torch.tensor([float("nan")]))
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    assert digest(torch.eye(3).T) == digest(torch.eye(3)) and digest(torch.zeros(0))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=9), st.data())
def test_the_sum_for_other_devices_notices_changes_and_places(values, data):
    bits = torch.tensor(values, dtype=torch.int32)
    at = data.draw(st.integers(0, len(values) - 1))
    flipped = bits.clone()
    flipped[at] ^= 1 << data.draw(st.integers(0, 30))
    assert weighted_sum(bits) == weighted_sum(bits.clone()) != weighted_sum(flipped)
    if not torch.equal(bits, bits.flip(0)):
        assert weighted_sum(bits) != weighted_sum(bits.flip(0))


def test_the_sum_is_that_of_its_chunks(monkeypatch):
    bits = torch.arange(100, dtype=torch.int16) - 50
    whole = weighted_sum(bits)
    monkeypatch.setattr("editors.evaluation.reference_model.CHUNK", 7)
    assert weighted_sum(bits) == whole


def test_only_some_tensors_can_be_looked_at():
    model = Small()
    before = Checksum.of(model, "inner.weight".__eq__)
    model.rough.data += 1
    assert not before.changes(Checksum.of(model, "inner.weight".__eq__))
    model.inner.weight.data += 1
    now = Checksum.of(model, "inner.weight".__eq__)
    with pytest.raises(NotRestored, match=r"editor e .* edit of s, inner\.weight differs"):
        before.require(now, "e", "s")

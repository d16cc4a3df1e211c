"""Tiny models as bridges of TransformerLens, built once per session: only to be read."""

from functools import cache

import torch
from conftest import examples, tiny_vlm

LAYERS = range(4)


@cache
def batch_of(name):
    """Images, a text alone, ragged prompts."""
    return tiny_vlm(name).encode(*examples())


@cache
def bridge_of(name, processed=False):
    """The model as a bridge, in compatibility mode if `processed`."""
    bridge = tiny_vlm(name).to_bridge()
    if processed:
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


@cache
@torch.no_grad()
def run(name, processed=False):
    """Logits and complete cache of the bridge on `batch_of(name)`."""
    inputs = dict(batch_of(name).inputs)
    return bridge_of(name, processed).run_with_cache(inputs.pop("input_ids"), **inputs)


def at_last(value, batch, axis=1):
    """A bridge's "batch ... pos ..." at the last position of each prompt."""
    rows = batch["last"].int().argmax(1)
    return torch.stack([x.select(axis - 1, int(row)) for x, row in zip(value, rows, strict=True)])


def assert_near(ours, theirs, tolerance=1e-5):
    """Equal up to `tolerance` times the largest number there is."""
    assert ours.shape == theirs.shape
    miss = (ours - theirs).abs().max()
    assert miss <= tolerance * theirs.abs().max().clamp(min=1), f"{miss:.1e}"

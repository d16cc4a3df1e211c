"""Replaying later layers equals writing into a whole pass."""

import pytest
import torch
from conftest import examples
from torch.testing import assert_close

from attrib.errors import AttribError
from attrib.forward.hooks import read, write
from attrib.forward.replay import capture, forward_from, logits_from


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_replaying_changed_states_equals_writing_them(different_vlm):
    batch = different_vlm.encode(*examples(), padding_side="left")
    with capture(different_vlm) as captured, read(different_vlm, [1]) as hidden:
        different_vlm.logits(batch)
    noise = torch.randn(hidden[1].shape, generator=torch.Generator().manual_seed(0))
    noise = noise * batch["visual"][..., None]
    with write(different_vlm, 1, lambda h: h + noise, batch["visual"]):
        written = different_vlm.logits(batch)
    resumed = logits_from(different_vlm, captured, 1, hidden[1] + noise)
    assert_close(resumed, written, atol=2e-6, rtol=1e-6)
    assert not torch.equal(resumed, logits_from(different_vlm, captured, 1, hidden[1]))


def test_several_copies_replay_together(different_vlm):
    batch = different_vlm.encode(*examples(), padding_side="right")
    with capture(different_vlm) as captured, read(different_vlm, [0]) as hidden:
        different_vlm.logits(batch)
    copies = [hidden[0], hidden[0] * 1.5]
    together = forward_from(different_vlm, captured, 0, torch.cat(copies))
    alone = torch.cat([forward_from(different_vlm, captured, 0, one) for one in copies])
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_replaying_another_batch_is_refused(vlm, batch):
    with capture(vlm) as captured:
        vlm.logits(batch)
    with pytest.raises(AttribError, match="expected the same shape, or a multiple of its batch"):
        logits_from(vlm, captured, 0, captured.embed[:2])
    with pytest.raises(AttribError, match="run one forward pass inside capture"), capture(vlm) as c:
        logits_from(vlm, c, 0, captured.embed)

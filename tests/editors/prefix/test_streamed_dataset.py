"""Inputs that pass the first layers at every step train the same adapters as kept ones."""

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples

from editors import EDITORS
from editors.prefix import streamed_dataset as passed_anew
from editors.prefix.cached_dataset import CachedDataset
from editors.prefix.streamed_dataset import StreamedDataset, cached_or_streamed

QUICK = {"steps": 8, "batch_size": 3, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.01,
         "warmup": 0, "preset": "embedded", "gate": "none"}  # fmt: skip
LAYERS = {"text": [1], "visual": [0]}
WHERE = {"first": [0], "signals": [0], "roles": ["request", "visual_locality"]}


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.mark.parametrize("name", ["dualedit", "visedit"])
def test_training_is_the_same_up_to_rounding(name, llava, tmp_path, caplog):
    ends = []
    for keep in (True, False):
        out = tmp_path / str(keep)
        with caplog.at_level("INFO", logger="attrib"):
            editor = EDITORS[name].train(
                llava, samples(8), layers=LAYERS, out=out, keep=keep, own_units=False, **QUICK
            )
        ends.append(torch.cat([p.detach().flatten() for p in editor.module.parameters()]))
    fresh = editor.adapters.build(llava, seed=0)
    start = torch.cat([p.detach().flatten() for s in fresh for p in s.adapter.parameters()])
    kept, anew = ends
    assert (anew - kept).norm() < 0.005 * (kept - start).norm()
    assert "are recomputed at every step" in caplog.text


@pytest.mark.parametrize(("room", "kind"), [(10**12, CachedDataset), (10**3, StreamedDataset)])
def test_what_does_not_fit_is_not_kept(llava, monkeypatch, room, kind):
    monkeypatch.setattr(passed_anew, "available_bytes", lambda _device: room)
    data, held = cached_or_streamed(llava, samples(10), samples(2), **WHERE)
    assert type(data) is kind
    assert len(data) == 10
    assert type(held) is CachedDataset


def test_an_edit_has_its_own_inputs_wherever_it_stands(llava):
    anew = StreamedDataset(llava, samples(6), **WHERE)
    whole, _ = cached_or_streamed(llava, samples(6), samples(1), **WHERE, keep=True)
    for items in ([4, 1], [1, 4], [4, 1, 4]):
        data, at = anew.load(items)
        for item, place in zip(items, at, strict=True):
            mine, its = data.inputs[place], whole.inputs[item]
            assert torch.allclose(mine["request"][0].final, its["request"][0].final, atol=1e-5)
    different = [q["request"][0].final for q in whole.inputs[:2]]
    assert not torch.allclose(*different, atol=1e-3)
    assert whole.num_bytes > 1000

"""Trained editors in half the bytes."""

import pytest
import torch
from conftest import tiny_vlm
from safetensors.torch import load_file
from tiny_edits import samples

from attrib.errors import AttribError
from editors import DualEdit
from editors.io import save_tensors
from editors.methods.half_precision import halve

QUICK = {"steps": 2, "batch_size": 2, "d_adapter": 16, "num_heads": 2, "preset": "embedded",
         "gate": "learned", "warmup": 0}  # fmt: skip


def test_half_the_bytes_load_as_the_same_editor_rounded_once(tmp_path):
    vlm = tiny_vlm("llava")
    layers = {"text": [1], "visual": [0]}
    whole = DualEdit.train(vlm, samples(4), layers=layers, out=tmp_path / "a", **QUICK)
    files = halve(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in files) == [
        "adapters.safetensors", "editor.json", "gate.json", "gate.safetensors",
    ]  # fmt: skip
    names = ("adapters.safetensors", "gate/gate.safetensors")
    sizes = [
        [sum(t.nbytes for t in load_file(tmp_path / run / name).values()) for name in names]
        for run in "ab"
    ]
    assert sizes[0] == [2 * size for size in sizes[1]]
    half = DualEdit.load(tmp_path / "b", vlm)
    for name, value in whole.tensors.items():
        assert torch.equal(half.tensors[name], value.half().float())
    assert half.gate.threshold == whole.gate.threshold
    assert any(not torch.equal(half.tensors[k], v) for k, v in whole.tensors.items())


def test_numbers_beyond_the_range_are_refused(tmp_path):
    (tmp_path / "editor.json").write_text("{}")
    save_tensors(tmp_path / "adapters.safetensors", {"a": torch.tensor([1.0, 7e4])})
    with pytest.raises(AttribError, match=r"adapters.safetensors: a has numbers beyond"):
        halve(tmp_path, tmp_path / "b")
    with pytest.raises(AttribError, match="no trained VisEdit or DualEdit"):
        halve(tmp_path / "none", tmp_path / "b")

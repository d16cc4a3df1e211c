"""Streamed inputs give the same gradients as cached ones."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny_models
import torch
from conftest import tiny_vlm
from safetensors.torch import load_file
from tiny_edits import samples
from torch.utils import _pytree as pytree

from attrib.model.vlm import VLM
from editors import DualEdit, VisEdit
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.training import dataset
from editors.training.dataset import (
    CachedDataset,
    StoredDataset,
    StreamedDataset,
    cached_or_streamed,
)
from editors.training.prefix import num_bytes
from editors.training.prefix_file import PrefixFiles, _prefix
from editors.training.trainer import Trainer

SMALL = {"d_adapter": 16, "num_heads": 2, "init": "published"}
LAYERS = {"text": [1], "visual": [0]}
ROLE = "visual_locality"
WHERE = {"first": [0], "signals": [0], "roles": ["request", ROLE]}


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def exact():
    """A model in float64, of its own: others use the shared one."""
    vlm = VLM(*tiny_models.build("llava"))
    vlm.model.double().requires_grad_(False)
    return vlm


def gradient(kind, vlm, keep):
    """Gradients of one step of adapters that are not the identity, in one vector."""
    config = kind.config_class.from_preset(vlm, "embedded", own_units=False, **SMALL)
    sites = config.build(vlm, {m: LAYERS[m] for m in kind.modalities}, seed=0)
    where = {"first": [min(site.layer for site in sites)], "signals": [-1, 0, 1]}
    roles, train = kind.needed_roles(config, sites), samples(6)
    data, held = cached_or_streamed(vlm, train, samples(1), **where, roles=roles, keep=keep)
    objective = kind.objective(vlm, config, sites, data, held, train)
    sum(objective.losses([4, 1, 3], np.random.default_rng(0)).values()).backward()
    return torch.cat([p.grad.flatten() for p in objective.module.parameters()])


@pytest.mark.parametrize("kind", [DualEdit, VisEdit])
def test_a_step_has_the_gradients_of_cached_inputs(kind, exact, caplog):
    with caplog.at_level("INFO", logger="attrib"):
        cached, streamed = (gradient(kind, exact, keep) for keep in (True, False))
    # The model runs in float64, adapters in float32.
    assert (streamed - cached).norm() < 1e-5 * cached.norm()
    assert cached.norm() > 0.1
    assert "are recomputed at every step" in caplog.text


@pytest.mark.parametrize(("room", "kind"), [(10**12, CachedDataset), (10**3, StreamedDataset)])
def test_what_does_not_fit_is_not_kept(llava, monkeypatch, room, kind):
    monkeypatch.setattr(dataset, "available_bytes", lambda _device: room)
    data, held = cached_or_streamed(llava, samples(10), samples(2), **WHERE)
    assert type(data) is kind
    assert len(data) == 10
    assert type(held) is CachedDataset


def test_what_does_not_fit_into_memory_is_run_once_and_read_from_files(
    llava, monkeypatch, tmp_path
):
    cached, _ = cached_or_streamed(llava, samples(10), samples(2), **WHERE, keep=True)
    monkeypatch.setattr(dataset, "available_bytes", lambda _device: 10**3)
    monkeypatch.setattr(dataset, "SIZED_EDITS", 4)
    stored, held = cached_or_streamed(llava, samples(10), samples(2), **WHERE, out=tmp_path)
    assert type(stored) is StoredDataset and type(held) is CachedDataset and len(stored) == 10
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 10
    monkeypatch.setattr(type(llava), "logits", None)  # nothing is run again
    data, at = stored.load([7, 2, 7])
    assert at == [0, 1, 0] and data.ids == ["edit-7", "edit-2"] and len(stored.sample_edits()) == 10
    for place, item in enumerate((7, 2)):
        mine, its = data.inputs[place], cached.inputs[item]
        assert mine.keys() == its.keys() and data.edits[place] is mine["request"][0]
        for role in mine:
            one, other = mine[role][0], its[role][0]
            assert one.request.prompt == other.request.prompt
            torch.testing.assert_close(one.hidden[0], other.hidden[0])
            both = zip(*(pytree.tree_leaves(vars(x)) for x in (one, other)), strict=True)
            assert all(a.dtype == b.dtype for a, b in both if torch.is_tensor(a))
    del stored, data
    assert not list(tmp_path.glob("*"))


def test_stored_states_are_those_that_were_given(llava, tmp_path):
    files, data = (
        PrefixFiles(tmp_path),
        cached_or_streamed(llava, samples(3), samples(1), **WHERE, keep=True)[0],
    )
    for inputs in data.inputs:
        files.add(inputs)
    read = [files.read(i) for i in range(3)]
    for mine, its in zip(read, data.inputs, strict=True):
        both = zip(
            *(
                pytree.tree_leaves({r: [vars(q) for q in some] for r, some in x.items()})
                for x in (mine, its)
            ),
            strict=True,
        )
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in both)
    # Arguments of layers that an edit's inputs share are stored once.
    for i, (mine, its) in enumerate(zip(read, data.inputs, strict=True)):
        stored = load_file(files._path(i))
        given, again = ([q for some in x.values() for q in some] for x in (its, mine))
        assert len(stored) < sum(map(torch.is_tensor, pytree.tree_leaves([vars(q) for q in given])))
        assert num_bytes(again) <= num_bytes(given) < sum(q.num_bytes for q in given)
    assert not PrefixFiles.have_room(tmp_path / "none", 1e18)


def test_a_thread_reads_the_files_of_the_next_step_and_steps_are_the_same(
    llava, monkeypatch, tmp_path
):
    config = AdapterConfig(d_adapter=16, num_heads=2, init="published", batch_size=2, steps=3)
    data, held = cached_or_streamed(llava, samples(7), samples(1), **WHERE, keep=True)
    monkeypatch.setattr(dataset, "available_bytes", lambda _device: 10**3)
    monkeypatch.setattr(dataset, "SIZED_EDITS", 4)
    stored, _ = cached_or_streamed(llava, samples(7), samples(1), **WHERE, out=tmp_path)
    assert isinstance(stored, StoredDataset)
    readers, load = {}, stored.files._load

    def seen(number):
        readers.setdefault(number, []).append(threading.current_thread().name)
        return load(number)

    monkeypatch.setattr(stored.files, "_load", seen)
    trained = []
    for inputs in (data, stored):
        sites = config.build(llava, {"visual": [0]}, seed=0)
        objective = AdapterObjective(llava, inputs, held, config, sites)
        out = tmp_path / type(inputs).__name__
        Trainer(objective, config, out, {}, lambda _: None).train()
        trained.append(torch.cat([p.detach().flatten() for p in objective.module.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-5)
    first, *later = [config.items(step, 7) for step in range(3)]
    assert all(readers[i] == ["MainThread"] for i in first)
    assert all(readers[i][0].startswith("prefix-states") for some in later for i in some)
    assert {*readers} == {*first, *later[0], *later[1]}  # no file is read for nothing, or twice
    assert all(len(names) == 1 for names in readers.values()) and not stored.files._expected


def test_states_that_a_killed_process_left_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getppid()):
        (tmp_path / f"{_prefix()}{process}-x").mkdir()
    (tmp_path / f".prefix-states-other-{gone.pid}-x").mkdir()  # of another machine
    mine = PrefixFiles(tmp_path)
    names = {folder.name for folder in tmp_path.iterdir()}
    assert len(names) == 3 and mine._folder.name.startswith(f"{_prefix()}{os.getpid()}-")
    assert {f"{_prefix()}{os.getppid()}-x", f".prefix-states-other-{gone.pid}-x"} < names


def test_an_edit_has_its_own_inputs_wherever_it_stands(llava):
    streamed = StreamedDataset(llava, samples(6), **WHERE)
    whole, _ = cached_or_streamed(llava, samples(6), samples(1), **WHERE, keep=True)
    for items in ([4, 1], [1, 4], [4, 1, 4]):
        data, at = streamed.load(items)
        for item, place in zip(items, at, strict=True):
            mine, its = data.inputs[place], whole.inputs[item]
            assert torch.allclose(mine[ROLE][0].final, its[ROLE][0].final, atol=1e-5)
    different = [q[ROLE][0].final for q in whole.inputs[:2]]
    assert not torch.allclose(*different, atol=1e-3)
    assert whole.num_bytes > 1000

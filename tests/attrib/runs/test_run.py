"""Runs: whatever stops them and whoever goes on, the tables are those of one run."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture, tiny_vlm

from attrib.analyses.attention import measure_attention
from attrib.data import BadImage, EditData, EditRequest, EditSample
from attrib.errors import AttribError, RowError, SetupError
from attrib.model.vlm import VLM
from attrib.runs import Rank, manifest, prepare
from attrib.runs import run as run_module

OPTIONS = {"norm": "none", "batch_size": 8}


class Stopped(BaseException):
    """Stands in for what ends a process."""


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch):
    """Memory runs out in pretence only: collecting garbage would take most of the time."""
    monkeypatch.setattr("attrib.runs.collect.free_memory", lambda: None)


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def sample(i, image=None, **changes):
    prompt = f"What is {'very ' * (i % 3)}red?"
    request = EditRequest(image or picture(40 + i % 4, 40, seed=i), prompt, "red")
    return EditSample(f"e{i}", request, meta={"row": i}, **changes)


def data_of(samples):
    return EditData("some", "test", list(samples), provenance={"file": "a.json", "sha256": "1"})


DATA = data_of(sample(i) for i in range(36))  # 16, 16 and 4 rows


def prepared(vlm, out, data=DATA, rank=None, size=8, **options):
    given = {"options": OPTIONS | options, "rank": rank or Rank(), "batch_size": size}
    return prepare(vlm, data, out, name="attention", **given)


def cheap(_vlm, _batch, samples):
    """A measurement that runs no model, and depends on its batch, as rounding does."""
    values = [len(samples) + int(s.id[1:]) for s in samples]
    return {"attention": pd.DataFrame({"example": [s.id for s in samples], "value": values})}


def stopping(after):
    """`measure_attention`, stopped before its n-th pass."""
    passes = iter(range(after))

    def measure(*given):
        if next(passes, None) is None:
            raise Stopped
        return measure_attention(*given)

    return measure


def broken_image():
    raise RowError("'x.jpg': no such file", file="a.json", row=7, field="image")


@pytest.fixture(scope="module")
def whole(vlm, tmp_path_factory):
    """The outcome of a run that nothing stopped, batch size 3."""
    out = tmp_path_factory.mktemp("whole")
    return prepared(vlm, out).execute(measure_attention, batch_size=3)


@pytest.mark.parametrize("after", [0, 6, 13])
def test_stopped_anywhere_and_resumed_the_table_is_the_same(vlm, whole, tmp_path, after):
    with pytest.raises(Stopped):
        prepared(vlm, tmp_path).execute(stopping(after), batch_size=3)
    again = prepared(vlm, tmp_path)
    assert len(again.committed()) == min(after // 6, 2)
    outcome = again.execute(measure_attention, batch_size=3)
    pd.testing.assert_frame_equal(
        outcome.tables["attention"], whole.tables["attention"], check_exact=True
    )
    assert outcome.used == [s.id for s in DATA] and outcome.manifest == whole.manifest


def test_resumed_with_another_batch_size_only_the_rounding_differs(vlm, whole, tmp_path):
    with pytest.raises(Stopped):
        prepared(vlm, tmp_path).execute(stopping(8), batch_size=3)
    table = prepared(vlm, tmp_path, batch_size=1).execute(measure_attention, batch_size=1).tables
    a, b = table["attention"], whole.tables["attention"]
    assert a.drop(columns="value").equals(b.drop(columns="value"))
    assert np.allclose(a["value"], b["value"], atol=1e-5, equal_nan=True)


def test_what_is_there_is_not_measured_again(vlm, tmp_path):
    prepared(vlm, tmp_path).execute(cheap)
    outcome = prepared(vlm, tmp_path).execute(stopping(0))
    assert outcome.used == [s.id for s in DATA]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_in_any_order_make_the_table_of_one(vlm, whole, tmp_path, world):
    for number in reversed(range(world)):
        run = prepared(vlm, tmp_path, rank=Rank(number, world))
        outcome = run.execute(measure_attention, batch_size=3)
        assert (outcome is None) == (number > 0)
    pd.testing.assert_frame_equal(
        outcome.tables["attention"], whole.tables["attention"], check_exact=True
    )


def test_a_run_of_two_ranks_is_resumed_by_one_and_by_three(vlm, tmp_path):
    assert prepared(vlm, tmp_path, rank=Rank(1, 2)).execute(cheap) is None
    assert len(prepared(vlm, tmp_path).committed()) == 1
    assert prepared(vlm, tmp_path, rank=Rank(2, 3)).execute(cheap) is None
    assert prepared(vlm, tmp_path).execute(cheap).used == [s.id for s in DATA]


def test_the_first_rank_does_the_work_of_one_that_is_gone(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "TIMEOUT_SECONDS", 0.0)
    outcome = prepared(vlm, tmp_path, rank=Rank(0, 2)).execute(cheap)
    assert outcome.used == [s.id for s in DATA]


def test_other_settings_are_refused_and_named(vlm, tmp_path):
    prepared(vlm, tmp_path).execute(cheap)
    prepared(vlm, tmp_path, batch_size=2)
    with pytest.raises(SetupError, match='norm: "none" there, "final" now; give another --out'):
        prepared(vlm, tmp_path, norm="final")


def test_of_processes_that_start_at_once_with_other_settings_the_second_is_refused(vlm, tmp_path):
    first, second = prepared(vlm, tmp_path), prepared(vlm, tmp_path, norm="final")
    same = prepared(vlm, tmp_path)
    told = []

    def measure(*given):  # nothing is committed before its first pass has ended
        with pytest.raises(SetupError, match='norm: "none" there, "final" now; give') as error:
            second.execute(cheap)
        told.append(error)
        return cheap(*given)

    outcome = first.execute(measure)
    assert told and outcome.manifest["options"]["norm"] == "none"
    assert same.execute(stopping(0)).tables["attention"].equals(outcome.tables["attention"])


def test_other_weights_under_the_same_name_are_refused(vlm, tmp_path):
    prepared(vlm, tmp_path).execute(cheap)
    weight = vlm.layers[1].mlp.down_proj.weight
    before = weight.clone()
    with torch.no_grad():
        weight.mul_(1.01)
        try:
            with pytest.raises(SetupError, match="fingerprint"):
                prepared(vlm, tmp_path)
        finally:
            weight.copy_(before)  # other tests share the model


def test_a_damaged_part_is_measured_again(vlm, tmp_path, caplog):
    first = prepared(vlm, tmp_path).execute(cheap)
    run = prepared(vlm, tmp_path)
    path = run.store.path(run.shards[1], "attention")
    path.write_bytes(path.read_bytes()[:-9])
    again = run.execute(cheap)
    assert again.tables["attention"].equals(first.tables["attention"])
    assert f"{path}: damaged part renamed" in caplog.text and path.is_file()


def test_failed_rows_are_rows_also_after_a_resumption(vlm, tmp_path):
    data = data_of(sample(i, broken_image if i == 7 else None) for i in range(20))
    for measure in (cheap, stopping(0)):
        outcome = prepared(vlm, tmp_path, data).execute(measure)
        (bad,) = outcome.quarantined
        assert (bad.file, bad.row, bad.field) == ("a.json", 7, "image")
        assert len(outcome.used) == 19 and outcome.manifest["quarantined"] == 1


def test_a_repaired_picture_is_used_when_the_run_is_resumed(vlm, tmp_path):
    bad = data_of(sample(i, broken_image if i == 7 else None) for i in range(36))
    assert len(prepared(vlm, tmp_path, bad).execute(cheap).used) == 35
    outcome = prepared(vlm, tmp_path, DATA).execute(cheap)
    assert outcome.used == [s.id for s in DATA] and not outcome.quarantined


def test_a_broken_picture_of_another_request_sets_aside_its_row_alone(vlm, tmp_path):
    def measure(vlm, batch, samples):
        for s in samples:
            _ = [request.image for request in s.visual_locality]
        return cheap(vlm, batch, samples)

    broken = EditRequest(broken_image, "What sport?", "tennis")
    data = data_of(sample(i, visual_locality=[broken] if i == 7 else []) for i in range(20))
    outcome = prepared(vlm, tmp_path, data).execute(measure)
    assert [str(q) for q in outcome.quarantined] == ["a.json: row 7: image: 'x.jpg': no such file"]
    assert outcome.used == [s.id for s in data if s.id != "e7"]
    assert prepared(vlm, tmp_path, data).execute(stopping(0)).used == outcome.used


def test_what_the_measurement_says_of_every_sample_is_raised_at_once(vlm, tmp_path):
    passes = []

    def measure(_vlm, _batch, samples):
        passes.append(len(samples))
        raise AttribError("layer 99: expected 0 to 3")

    with pytest.raises(AttribError, match="layer 99: expected 0 to 3") as error:
        prepared(vlm, tmp_path).execute(measure)
    assert not isinstance(error.value, SetupError) and passes.count(1) == 16
    prepared(vlm, tmp_path, norm="final").execute(cheap)  # nothing was there to be mixed


def test_memory_that_never_suffices_is_raised(vlm, tmp_path):
    def measure(_vlm, _batch, _samples):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        prepared(vlm, tmp_path).execute(measure)


def test_a_row_that_did_not_fit_is_tried_again(vlm, tmp_path):
    def measure(vlm, batch, samples):
        if any(s.id == "e20" for s in samples):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return cheap(vlm, batch, samples)

    (bad,) = prepared(vlm, tmp_path).execute(measure).quarantined
    assert (bad.row, bad.field) == (20, "memory") and "can't allocate" in bad.reason
    assert not prepared(vlm, tmp_path).execute(cheap).quarantined


def test_nothing_usable_is_said(vlm, tmp_path):
    bad = EditRequest(lambda: (_ for _ in ()).throw(BadImage("x.jpg", "no such file")), "?", "")
    data = data_of([EditSample("e0", bad, meta={"row": 0})])
    with pytest.raises(SetupError, match=r"none of 1 rows can be used; the first: a\.json: row 0"):
        prepared(vlm, tmp_path, data).execute(cheap)
    with pytest.raises(SetupError, match="the data is empty"):
        prepared(vlm, tmp_path / "empty", data_of([])).execute(cheap)


def test_several_tables_come_back(vlm, tmp_path):
    def measure(vlm, batch, samples):
        table = cheap(vlm, batch, samples)["attention"]
        return {"attention": table, "more": table.assign(word="x")}

    tables = prepared(vlm, tmp_path).execute(measure).tables
    assert set(tables) == {"attention", "more"} and len(tables["more"]) == len(DATA)


def test_a_file_in_place_of_the_folder_is_refused(vlm, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="a file, not a folder"):
        prepared(vlm, tmp_path / "file")


def test_preparing_writes_nothing(vlm, tmp_path):
    prepared(vlm, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_sizes_do_not_mix_in_half_precision(vlm, tmp_path, dtype):
    other = VLM(copy.deepcopy(vlm.model).to(dtype), vlm.processor, "llava")
    prepared(other, tmp_path, data_of([sample(0)])).execute(cheap, batch_size=8)
    if dtype == torch.float32:
        assert prepared(other, tmp_path, data_of([sample(0)]), batch_size=4).committed()
        return
    with pytest.raises(SetupError, match="batch_size: 8 there, 4 now"):
        prepared(other, tmp_path, data_of([sample(0)]), batch_size=4)


# --- how many samples a pass takes


def passes(seen):
    """`cheap`, which notes how many samples each pass has."""

    def measure(vlm, batch, samples):
        seen.append(len(samples))
        return cheap(vlm, batch, samples)

    return measure


def test_a_pass_takes_what_fits_and_a_shard_holds_a_pass(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "samples_at_once", lambda *_: 30)
    measured = prepared(vlm, tmp_path, batch_size=None, size=None)
    measured.execute(passes(seen := []))
    assert seen == [30, 6] and [len(shard.samples) for shard in measured.shards] == [30, 6]
    assert manifest.stored(tmp_path)["options"]["batch_size"] == 30
    again = prepared(vlm, tmp_path, size=64)  # float32: any size goes on with the same shards
    assert len(again.committed()) == 2


def test_a_run_goes_on_with_the_size_that_it_has(vlm, tmp_path, monkeypatch):
    half = VLM(copy.deepcopy(vlm.model).half(), vlm.processor, "llava")
    with pytest.raises(Stopped):
        prepared(half, tmp_path).execute(stopping(2))
    monkeypatch.setattr(run_module, "samples_at_once", lambda *_: 30)
    made = manifest.stored(tmp_path)
    del made["rows_per_shard"]  # as an earlier version wrote it
    manifest.write(tmp_path, made)
    again = prepared(half, tmp_path, batch_size=None, size=None)
    assert again.batch_size == 8 and len(again.committed()) == 1
    again.execute(passes(seen := []))
    assert seen == [8, 8, 4]


@pytest.mark.parametrize("world", [1, 2])
def test_processes_that_start_at_once_agree_on_a_size(vlm, tmp_path, monkeypatch, world):
    runs = []
    for number, size in enumerate((30, 20)):
        monkeypatch.setattr(run_module, "samples_at_once", lambda *_, size=size: size)
        rank = Rank(number % world, world)
        runs.append(prepared(vlm, tmp_path, rank=rank, batch_size=None, size=None))
    runs[1].execute(passes(seen := []))  # it writes the manifest first
    outcome = runs[0].execute(passes(seen))
    assert sorted(seen) == [16, 20] and outcome.used == [s.id for s in DATA]
    assert outcome.manifest["options"]["batch_size"] == 20

"""Shards: cut by row number; what was written is read back, anything else is not trusted."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.data import EditRequest, EditSample, Quarantined
from attrib.errors import AttribError
from attrib.runs import ROWS, ShardStore, split
from attrib.runs import shards as shards_module
from attrib.runs.collected import Collected
from attrib.runs.shards import merge

SAMPLES = [EditSample(f"e{i}", EditRequest(None, "?", ""), meta={"row": i}) for i in range(20)]
FIRST, SECOND = split(SAMPLES)
BAD = Quarantined("a.json", 3, "image", "'x.jpg': no such file")


def numbers(samples):
    return pd.DataFrame(
        {
            "example": [s.id for s in samples],
            "layer": range(len(samples)),
            "value": [np.nan, *np.linspace(0, 1 / 3, len(samples) - 1)],
        }
    )


def collected(shard):
    used = [s for s in shard.samples if s.id != "e3"]
    failed = [(s, BAD) for s in shard.samples if s.id == "e3"]
    tables = {"numbers": numbers(used), "words": numbers(used).assign(word="red")}
    return Collected("a.json", [tables], used, failed)


@pytest.fixture
def store(tmp_path):
    store = ShardStore(tmp_path)
    for shard in (FIRST, SECOND):
        store.write(shard, collected(shard))
    return store


def read(store):
    return [store.read(shard) for shard in (FIRST, SECOND)]


def test_what_was_written_comes_back(store):
    first, second = read(store)
    assert first.failed == {"e3": BAD} and second.failed == {}
    assert first.used == [s.id for s in FIRST.samples if s.id != "e3"]
    tables = merge([first, second])
    used = [s for s in SAMPLES if s.id != "e3"]
    expected = pd.concat([numbers(used[:15]), numbers(used[15:])], ignore_index=True)
    pd.testing.assert_frame_equal(tables["numbers"], expected)
    assert set(tables["words"]["word"]) == {"red"}


def test_every_row_of_a_shard_is_accounted_for(store):
    first, _ = read(store)
    assert {*first.used, *first.failed} == {s.id for s in FIRST.samples}


def test_a_shard_without_a_usable_sample_is_a_shard(tmp_path):
    store = ShardStore(tmp_path)
    failed = [(s, Quarantined("a.json", name, "value", "x")) for name, s in enumerate(SAMPLES[:16])]
    store.write(FIRST, Collected("a.json", [], [], failed))
    store.write(SECOND, collected(SECOND))
    first, second = read(store)
    assert first.tables == {} and first.used == [] and len(first.failed) == 16
    assert merge([first, second])["numbers"]["example"].tolist() == [s.id for s in SAMPLES[16:]]


def test_rows_may_be_named_by_words(tmp_path):
    store, bad = ShardStore(tmp_path), Quarantined("a.json", "row seven", "src", "is empty")
    store.write(SECOND, Collected("", [], [], [(s, bad) for s in SECOND.samples]))
    assert set(store.read(SECOND).failed.values()) == {bad}


def test_what_is_not_there_is_none(tmp_path):
    assert ShardStore(tmp_path).read(FIRST) is None and not ShardStore(tmp_path).has(FIRST)


@pytest.mark.parametrize("table", ["rows", "numbers", "words"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "other"])
def test_a_damaged_file_is_named_renamed_and_measured_again(store, caplog, table, harm):
    path = store.path(FIRST, table)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-20],
            "emptied": b"",
            "flipped": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "other": store.path(SECOND, table).read_bytes(),
        }[harm]
    )
    assert store.read(FIRST) is None and not store.has(FIRST)
    assert f"{path}: damaged part renamed" in caplog.text
    assert path.with_suffix(".damaged").is_file() and not path.exists()
    assert store.read(SECOND) is not None
    store.write(FIRST, collected(FIRST))
    assert store.read(FIRST).failed == {"e3": BAD}


@pytest.mark.parametrize("other", ["renamed", "written again"])
def test_of_two_processes_that_meet_a_damaged_shard_neither_loses_anything(
    store, monkeypatch, other
):
    path, load = store.path(FIRST), shards_module._load
    path.write_bytes(b"")

    def slow(*_given):  # the other process is faster
        monkeypatch.setattr(shards_module, "_load", load)
        assert store.read(FIRST) is None
        if other == "written again":
            store.write(FIRST, collected(FIRST))
        return load(path) if other == "renamed" else raise_damaged()

    def raise_damaged():
        raise shards_module.Damaged(path, "seen before")

    monkeypatch.setattr(shards_module, "_load", slow)
    assert store.read(FIRST) is None
    assert store.has(FIRST) == (other == "written again")
    assert path.with_suffix(".damaged").is_file()


def test_a_part_without_its_commit_is_no_part(store):
    store.path(FIRST).unlink()
    assert store.read(FIRST) is None


def test_a_commit_without_its_part_is_taken_back(store, caplog):
    store.path(FIRST, "words").unlink()
    assert store.read(FIRST) is None and not store.has(FIRST) and "is missing" in caplog.text


def test_only_what_killed_writers_left_is_removed(store):
    old, new = (store.folder / f".{name}.parquet.abc.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.clean()
    assert not old.exists() and new.exists() and None not in read(store)


def sample(row, name=None):
    meta = {} if row is None else {"row": row}
    return EditSample(name or f"e{row}", EditRequest(None, "What?", "red"), meta=meta)


@given(st.sets(st.integers(0, 200)))
def test_every_sample_is_in_one_shard_and_the_order_stays(rows):
    samples = [sample(row) for row in sorted(rows)]
    shards = split(samples)
    assert [s for shard in shards for s in shard.samples] == samples
    assert all(s.meta["row"] // ROWS == shard.index for shard in shards for s in shard.samples)
    assert len({shard.key for shard in shards}) == len(shards)


def test_a_missing_row_changes_its_own_shard_only():
    whole = split([sample(row) for row in range(3 * ROWS)])
    less = split([sample(row) for row in range(3 * ROWS) if row != ROWS + 1])
    same = [a.key == b.key for a, b in zip(whole, less, strict=True)]
    assert same == [True, False, True]


def test_a_longer_dataset_keeps_the_full_shards():
    short, long = (split([sample(row) for row in range(n)]) for n in (20, 40))
    assert short[0].key == long[0].key and short[1].key != long[1].key


def test_samples_without_row_numbers_are_cut_by_position():
    shards = split([sample(None, f"e{i}") for i in range(ROWS + 1)])
    assert [len(shard.samples) for shard in shards] == [ROWS, 1]


def test_rows_out_of_order_keep_the_order_of_the_data():
    shards = split([sample(100), sample(3), sample(50)])
    assert [[s.id for s in shard.samples] for shard in shards] == [["e100", "e3", "e50"]]


def test_two_samples_of_one_name_are_refused():
    with pytest.raises(AttribError, match="two samples have the id 'e1'"):
        split([sample(1), sample(1)])

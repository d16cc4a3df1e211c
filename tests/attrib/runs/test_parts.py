"""Parts: what was written comes back, and what was not written is never trusted."""

import os

import numpy as np
import pandas as pd
import pytest

from attrib.data import EditRequest, EditSample, Quarantined
from attrib.runs import Parts, split
from attrib.runs.collecting import Collected
from attrib.runs.shards import merged

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


def collected(unit):
    used = [s for s in unit.samples if s.id != "e3"]
    failed = [(s, BAD) for s in unit.samples if s.id == "e3"]
    tables = {"numbers": numbers(used), "words": numbers(used).assign(word="red")}
    return Collected("a.json", [tables], used, failed)


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path)
    for unit in (FIRST, SECOND):
        parts.write(unit, collected(unit))
    return parts


def read(parts):
    return [parts.read(unit) for unit in (FIRST, SECOND)]


def test_what_was_written_comes_back(parts):
    first, second = read(parts)
    assert first.failed == {"e3": BAD} and second.failed == {}
    assert first.used == [s.id for s in FIRST.samples if s.id != "e3"]
    tables = merged([first, second])
    used = [s for s in SAMPLES if s.id != "e3"]
    expected = pd.concat([numbers(used[:15]), numbers(used[15:])], ignore_index=True)
    pd.testing.assert_frame_equal(tables["numbers"], expected)
    assert set(tables["words"]["word"]) == {"red"}


def test_every_row_of_a_unit_is_accounted_for(parts):
    first, _ = read(parts)
    assert {*first.used, *first.failed} == {s.id for s in FIRST.samples}


def test_a_unit_without_a_usable_sample_is_a_unit(tmp_path):
    parts = Parts(tmp_path)
    failed = [(s, Quarantined("a.json", name, "value", "x")) for name, s in enumerate(SAMPLES[:16])]
    parts.write(FIRST, Collected("a.json", [], [], failed))
    parts.write(SECOND, collected(SECOND))
    first, second = read(parts)
    assert first.tables == {} and first.used == [] and len(first.failed) == 16
    assert merged([first, second])["numbers"]["example"].tolist() == [s.id for s in SAMPLES[16:]]


def test_rows_may_be_named_by_words(tmp_path):
    parts, bad = Parts(tmp_path), Quarantined("a.json", "row seven", "src", "is empty")
    parts.write(SECOND, Collected("", [], [], [(s, bad) for s in SECOND.samples]))
    assert set(parts.read(SECOND).failed.values()) == {bad}


def test_what_is_not_there_is_none(tmp_path):
    assert Parts(tmp_path).read(FIRST) is None and not Parts(tmp_path).has(FIRST)


@pytest.mark.parametrize("table", ["rows", "numbers", "words"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "other"])
def test_a_damaged_part_is_named_put_aside_and_gone(parts, caplog, table, harm):
    path = parts.path(FIRST, table)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-20],
            "emptied": b"",
            "flipped": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "other": parts.path(SECOND, table).read_bytes(),
        }[harm]
    )
    assert parts.read(FIRST) is None and not parts.has(FIRST)
    assert f"{path}: damaged part put aside" in caplog.text
    assert path.with_suffix(".damaged").is_file() and not path.exists()
    assert parts.read(SECOND) is not None
    parts.write(FIRST, collected(FIRST))
    assert parts.read(FIRST).failed == {"e3": BAD}


def test_a_part_without_its_commit_is_no_part(parts):
    parts.path(FIRST).unlink()
    assert parts.read(FIRST) is None


def test_a_commit_without_its_part_is_taken_back(parts, caplog):
    parts.path(FIRST, "words").unlink()
    assert parts.read(FIRST) is None and not parts.has(FIRST) and "is missing" in caplog.text


def test_only_what_killed_writers_left_is_removed(parts):
    old, new = (parts.folder / f".{name}.parquet.abc.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    parts.clean()
    assert not old.exists() and new.exists() and None not in read(parts)

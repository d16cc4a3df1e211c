"""Small tools: whole files, hashes, progress."""

import logging

import pytest

from attrib.files import atomic_write, locked, sha256, versions, weights_digest, write_text
from attrib.progress import progress


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert write_text(tmp_path / "ours", "x").stat().st_mode == plain.stat().st_mode


def test_a_lock_is_held_by_one_or_shared_by_many(tmp_path):
    path = tmp_path / "new" / ".lock"
    with locked(path) as held, locked(path, wait=False) as second:
        assert held and not second
    with locked(path, shared=True), locked(path, shared=True, wait=False) as second:
        assert second
        with locked(path, wait=False) as alone:
            assert not alone
    with locked(path, wait=False) as held:
        assert held


def test_digests_follow_the_bytes(tmp_path):
    a, b = (write_text(tmp_path / f"{name}.safetensors", name) for name in "ab")
    assert sha256(a) == sha256(a) != sha256(b) and len(sha256(a)) == 64
    before = weights_digest(tmp_path)
    write_text(b, "other")
    assert weights_digest(tmp_path) != before
    assert weights_digest(tmp_path / "nowhere") is None


def test_versions_name_what_numbers_depend_on():
    assert {"python", "torch", "transformers", "attrib"} <= set(versions())


def test_progress_passes_everything_on_and_logs_plain_lines(caplog):
    with caplog.at_level(logging.INFO, logger="attrib"):
        assert list(progress([1, 2, 3], "work")) == [1, 2, 3]
    assert caplog.messages == [caplog.messages[0]] and caplog.messages[0].startswith(
        "work: 3 batches"
    )

"""Manifests: nothing is mixed silently."""

import pytest

from attrib.errors import SetupError
from attrib.runs import NON_IDENTIFYING, refuse_foreign
from attrib.runs.manifest import claimed, differences, refuse_other, stored, write

ONE = {
    "command": "attention",
    "invocation": "attrib attention",
    "model": {"name": "a", "device": "cpu", "fingerprint": "12"},
    "data": {"split": "test", "sha256": "34", "limit": 8, "rows_quarantined": 1},
    "options": {"limit": 8, "norm": "none", "sigmas": (0.5, 1.0), "batch_size": 8, "out": None},
    "versions": {"attrib": "1", "torch": "2", "pandas": "3"},
}


def changed(part, **values):
    return {**ONE, part: {**ONE[part], **values}}


@pytest.mark.parametrize(
    "new",
    [
        ONE,
        {**ONE, "invocation": "attrib attention --batch-size 2"},
        changed("model", device="cuda:0", name="b"),
        changed("options", batch_size=2, out="x", sigmas=[0.5, 1.0]),
        changed("versions", pandas="4"),
        changed("data", rows_quarantined=0),
    ],
)
def test_what_changes_no_number_may_differ(new):
    assert differences(ONE, new, NON_IDENTIFYING) == []


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (changed("options", norm="final"), 'norm: "none" there, "final" now'),
        (changed("options", sigmas=[0.5]), "sigmas: [0.5, 1.0] there, [0.5] now"),
        (changed("options", draws=2), "draws: null there, 2 now"),
        (changed("model", fingerprint="13"), 'fingerprint: "12" there, "13" now'),
        (changed("data", sha256="3" * 64), f'sha256: "34" there, "{"3" * 36}... now'),
        (changed("versions", torch="3"), 'torch: "2" there, "3" now'),
        ({**ONE, "command": "sweep"}, 'command: "attention" there, "sweep" now'),
    ],
)
def test_what_changes_a_number_is_told_with_both_values(new, told):
    assert differences(ONE, new, NON_IDENTIFYING) == [told]


def test_an_option_and_what_it_led_to_are_told_once():
    new = {**changed("options", limit=9), "data": {**ONE["data"], "limit": 9}}
    assert differences(ONE, new, NON_IDENTIFYING) == ["limit: 8 there, 9 now"]


def test_only_computed_parts_are_protected(tmp_path):
    write(tmp_path, ONE)
    new = changed("options", norm="final")
    refuse_other(tmp_path, new, NON_IDENTIFYING)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "000000-x.rows.parquet").touch()
    refuse_other(tmp_path, ONE, NON_IDENTIFYING)
    with pytest.raises(SetupError, match=r'norm: "none" there, "final" now; give another --out'):
        refuse_other(tmp_path, new, NON_IDENTIFYING)
    refuse_other(tmp_path, new, NON_IDENTIFYING | {"options.norm"})


def test_many_differences_are_counted(tmp_path):
    write(tmp_path, ONE)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "000000-x.rows.parquet").touch()
    with pytest.raises(SetupError, match="and 4 more"):
        refuse_other(tmp_path, changed("options", **{f"o{i}": i for i in range(12)}), frozenset())


def test_foreign_folders_are_refused(tmp_path):
    refuse_foreign(tmp_path / "new")
    (tmp_path / ".hidden").touch()
    refuse_foreign(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SetupError, match=r"holds thesis\.tex and no run"):
        refuse_foreign(tmp_path)
    with pytest.raises(SetupError, match="a file, not a folder"):
        refuse_foreign(tmp_path / "thesis.tex")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"command": "demo"}', "\udcff"])
def test_a_manifest_of_something_else_makes_a_folder_foreign(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SetupError, match="no run of an analysis"):
        refuse_foreign(tmp_path)


def test_a_folder_that_another_process_starts_a_run_in_is_not_foreign(tmp_path):
    (tmp_path / "parts").mkdir()
    with pytest.raises(SetupError, match="holds parts and no run"):
        refuse_foreign(tmp_path)
    with claimed(tmp_path, ONE, NON_IDENTIFYING):
        (tmp_path / "manifest.json").unlink()  # as between the locks and the manifest
        refuse_foreign(tmp_path)
        (tmp_path / "parts" / "000000-x.rows.parquet").touch()
        with pytest.raises(SetupError, match="holds parts and no run"):
            refuse_foreign(tmp_path)


def test_a_runs_folder_is_not_foreign(tmp_path):
    write(tmp_path, ONE)
    (tmp_path / "notes.txt").touch()
    refuse_foreign(tmp_path)
    assert stored(tmp_path)["options"]["sigmas"] == [0.5, 1.0] and stored(tmp_path / "new") == {}

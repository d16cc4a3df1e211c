"""The commands of README are run in their order, in one folder, and a failed one is told."""

import json

import pytest

from benchmarks import first_commands
from benchmarks.first_commands import NEEDED, measured, run_command, timed_commands


def test_a_command_is_a_process_whose_cpu_seconds_are_its_own(tmp_path):
    wall, cpu = run_command(["--help"], tmp_path)
    assert wall > 0 and cpu > 0
    with pytest.raises(RuntimeError, match=r"attrib nothing failed:\n[\s\S]*nothing"):
        run_command(["nothing"], tmp_path)


def test_every_round_has_a_new_folder_with_the_photo(monkeypatch, tmp_path, capsys):
    ran = []

    def fake(arguments, folder):
        assert (folder / NEEDED).is_file()
        ran.append((arguments, folder))
        return 9.0, float(len(ran))

    monkeypatch.setattr(first_commands, "run_command", fake)
    rows = measured(["one --limit 2", "two 'three four'"], rounds=3)
    assert [arguments for arguments, _ in ran[:2]] == [
        ["one", "--limit", "2"],
        ["two", "three four"],
    ]
    folders = [folder for _, folder in ran]
    assert folders[::2] == folders[1::2] and len({*folders}) == 3
    assert [row["CPU seconds"] for row in rows] == [[1, 3, 5], [2, 4, 6]]
    assert [row["median CPU seconds"] for row in rows] == [3, 4]
    first_commands.main(["--rounds", "1", "--out", str(tmp_path / "new" / "file.json")])
    found = json.loads((tmp_path / "new" / "file.json").read_text())
    listed = [row["command"] for row in found["rows"]]
    assert listed == [f"attrib {command}" for command in timed_commands()]
    assert {"date", "machine", "instructions", "threads", "versions"} <= set(found)
    assert [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()] == listed

"""Real commands in processes of their own: killed, resumed, and shared between ranks."""

import json

import pytest
from conftest import save_tiny
from small_data import write_data

from benchmarks.kill_sweep import different, kill_and_resume, start


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """`attrib contributions` on six shards, one row of which has no picture."""
    folder = tmp_path_factory.mktemp("small")
    data = write_data(folder / "data", rows=90, row_20={"image": "none.png"})
    model = save_tiny(folder / "model")
    on = ["--model", str(model), "--data", str(data), "--split", "vqa-train"]
    return ["contributions", *on, "--batch-size", "3"]


@pytest.fixture(scope="module")
def killed(command, tmp_path_factory):
    """What came of kills, and the folder of the run that was left in peace."""
    folder = tmp_path_factory.mktemp("kills")
    return kill_and_resume(command, folder, kills=2), folder / "whole"


def test_killed_at_any_moment_and_resumed_the_tables_are_those_of_one_run(killed):
    found, _ = killed
    assert len(found.committed) == 2 and found.units == 6
    assert found.finished >= 1 and not found.different


def test_two_ranks_make_the_table_of_one_process(command, killed, tmp_path):
    (_, alone), out = killed, tmp_path / "out"
    logs = [tmp_path / f"log-{i}.txt" for i in range(2)]
    ranks = [
        start([*command, "--out", str(out)], log, {"RANK": str(i), "WORLD_SIZE": "2"})
        for i, log in enumerate(logs)
    ]
    for process in ranks:
        process.join()
    said = [log.read_text() for log in logs]
    assert [process.exitcode for process in ranks] == [0, 0], said
    assert different(alone, out) == []
    assert json.loads((out / "manifest.json").read_text())["examples"] == 89
    assert "samples used: 89, rows quarantined: 1" in said[0] and "samples used" not in said[1]


def test_the_comparison_would_notice(killed, tmp_path):
    _, alone = killed
    tables = ["answers.parquet", "result.parquet"]
    assert different(alone, alone) == [] and different(alone, tmp_path) == tables

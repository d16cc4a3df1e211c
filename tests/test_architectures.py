"""The small models cover every type, runs are isolated and resume, the table shows the record."""

import json
import os
import signal
import time

import pytest
import torch
from torch import nn

from tests.architectures import isolated, table
from tests.architectures.registry import BUILDERS, OUT_OF_SCOPE, type_of
from tests.architectures.small import jitter


def test_every_type_has_a_builder():
    # Of another release of transformers, `--compare` names the new types.
    known = {row["type"] for row in json.loads(table.RECORD.read_text())["rows"]}
    assert known == set(BUILDERS) and set(OUT_OF_SCOPE) < known
    assert {type_of(name) for name in known} <= known


def test_no_saved_number_of_a_jittered_model_stays_one_or_zero():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.query = nn.LayerNorm(4), nn.Parameter(torch.zeros(2, 4))
            self.scalar = nn.Buffer(torch.ones(1))
            self.steps = nn.Buffer(torch.arange(3))
            self.frequencies = nn.Buffer(torch.ones(2), persistent=False)

    made = jitter(Layer())
    numbers = torch.cat([p.flatten() for p in [*made.parameters(), made.scalar]])
    assert not numbers.eq(0).any() and not numbers.eq(1).any()
    assert made.steps.tolist() == [0, 1, 2] and made.frequencies.eq(1).all()


def _row(name):
    return isolated._lost(name, late=False, code=0) | {"remarks": [], "passed": 1, "total": 1}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_type_that_dies_or_hangs_stops_no_other_and_none_is_run_twice(monkeypatch, tmp_path):
    started = tmp_path / "started"
    started.touch()

    def measure(name):
        with started.open("a") as file:
            file.write(f"{name}\n")
        if name == "llava":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "gemma3":
            time.sleep(60)
        return _row(name)

    monkeypatch.setattr(isolated, "measure", measure)
    monkeypatch.setattr(isolated, "LIMIT", 1.0)
    monkeypatch.setattr(isolated, "digest", lambda: "same")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    names = ["llava", "gemma3", "aria", "fuyu"]
    rows = {row["type"]: row for row in isolated.run(names, 2, tmp_path / "rows")}
    assert set(rows) == set(names) and table.passes(rows["aria"]) and table.passes(rows["fuyu"])
    assert rows["llava"]["remarks"] == ["its process died, exit code -9"]
    assert rows["gemma3"]["remarks"] == ["took more than 1 seconds"]
    (tmp_path / "rows" / "aria.json").write_text('{"type": "ar')  # cut while it was written
    again = list(isolated.run(["fuyu", "aria"], 1, tmp_path / "rows"))
    assert again == [rows["fuyu"], rows["aria"]]
    assert started.read_text().split().count("fuyu") == 1
    monkeypatch.setattr(isolated, "digest", lambda: "another")  # a source has changed
    list(isolated.run(["fuyu"], 1, tmp_path / "rows"))
    assert started.read_text().split().count("fuyu") == 2


def test_the_page_shows_the_record_of_all_types():
    record = json.loads(table.RECORD.read_text())
    rows, page = record.pop("rows"), table.PAGE.read_text()
    assert table.markdown(rows, record) in page


def test_writing_replaces_what_is_between_the_markers(tmp_path):
    page, record = tmp_path / "page.md", tmp_path / "record.json"
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    failed = _row("fuyu") | {"passed": 0, "failed": [["adds up", "a | b"], ["other", "x"]]}
    table.write([failed, _row("aria"), _row("mllama")], page, record)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "1 of 2 decoder-only types pass every check" in text
    assert "| `fuyu` | none | 0 of 1 |  | adds up: no, a \\| b; also other |" in text
    assert "| `mllama` | cross-attention |  |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the lines"):
        table.write([_row("aria")], page, record)

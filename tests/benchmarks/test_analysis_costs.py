"""The costs of analyses: a row per analysis, kept when the next call finds it."""

import json

import pytest

from benchmarks import analysis_costs


def test_every_analysis_has_a_row_that_is_made_once(tmp_path, capsys):
    given = ["--model", "tiny-llava", "--samples", "1", "--in-process", "--out", str(tmp_path)]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            analysis_costs.main(given)
        assert not ended.value.code
    assert capsys.readouterr().out.count(": started") == 8  # by the first call
    rows = json.loads((tmp_path / "analysis-costs-tiny-llava.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["answer", *analysis_costs.ANALYSES, "explore"]
    assert all(row["seconds a sample"] > 0 and row["peak MiB"] > 100 for row in rows)

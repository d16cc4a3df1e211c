"""Results: what is saved is loaded, means are means, intervals cover."""

import numpy as np
import pandas as pd
import pytest

from attrib.results import Result
from attrib.stats import bootstrap_means


def planted(n=40, seed=0, **provenance):
    """Values around the layer's number, one row per example x layer x module."""
    rng = np.random.default_rng(seed)
    rows = [
        {"example": f"e{i}", "layer": layer, "module": module, "value": layer + rng.normal()}
        for i in range(n)
        for layer in range(3)
        for module in ("attn", "mlp")
    ]
    return Result("planted", pd.DataFrame(rows), provenance)


def test_a_saved_result_loads_equal(tmp_path):
    result = planted(model="m", options={"key": "argmax", "layers": (1, 2)}, note="café")
    assert Result.load(result.save(tmp_path / "result.parquet")) == result


def test_equality_sees_values_provenance_and_name():
    result = planted(model="m")
    assert result != planted(model="other") and result != planted(model="m", seed=1)
    assert result != Result("other", result.frame, result.provenance)


def test_saving_replaces_whole_files_and_leaves_no_others(tmp_path):
    planted(seed=0).save(tmp_path / "r.parquet")
    planted(seed=1).save(tmp_path / "r.parquet")
    assert Result.load(tmp_path / "r.parquet") == planted(seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = planted(seed=0).save(tmp_path / "r.parquet")

    def full_disk(_table, file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("attrib.results.pq.write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        planted(seed=1).save(path)
    assert Result.load(path) == planted(seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_what_json_cannot_hold_is_refused_at_once():
    with pytest.raises(ValueError, match="JSON"):
        planted(score=float("nan"))


def test_a_frame_without_examples_is_refused():
    with pytest.raises(ValueError, match=r"columns example and value: .* missing"):
        Result("x", pd.DataFrame({"layer": [1]}), {})


def test_files_that_are_no_results_are_named(tmp_path):
    path = planted().save(tmp_path / "r.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"r\.parquet is not a whole Parquet file"):
        Result.load(path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="not a result of attrib"):
        Result.load(tmp_path / "other.parquet")


def test_the_mean_is_the_mean_over_examples():
    result = planted()
    means = result.mean(["layer", "module"])
    expected = result.frame.groupby(["layer", "module"])["value"].mean()
    assert list(means.columns) == ["layer", "module", "mean", "low", "high", "n"]
    assert np.allclose(means["mean"], expected)
    assert (means["low"] < means["mean"]).all() and (means["mean"] < means["high"]).all()


def test_an_example_with_more_rows_weighs_no_more():
    frame = pd.DataFrame({"example": ["a", "a", "a", "b"], "layer": 0, "value": [0, 0, 0, 1.0]})
    assert Result("x", frame, {}).mean(["layer"])["mean"].item() == 0.5


def test_intervals_depend_on_the_seed_alone():
    result = planted()
    shuffled = Result("planted", result.frame.sample(frac=1, random_state=1), {})
    assert result.mean(["layer"], seed=3).equals(result.mean(["layer"], seed=3))
    assert not result.mean(["layer"], seed=3).equals(result.mean(["layer"], seed=4))
    assert np.allclose(result.mean(["layer"])["mean"], shuffled.mean(["layer"])["mean"])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    means = [planted(seed=seed).mean(["layer"], resamples=200) for seed in range(60)]
    covered = [(m["low"] <= m["layer"]) & (m["layer"] <= m["high"]) for m in means]
    assert 0.85 < np.mean(covered) < 0.99


def test_an_interval_narrows_with_examples():
    wide, narrow = (planted(n).mean(["layer"]) for n in (20, 320))
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert ratio.between(2.5, 6).all()  # sqrt(16) = 4


def test_one_example_has_no_interval():
    means = planted(1).mean(["layer"])
    assert means["low"].isna().all() and means["high"].isna().all() and (means["n"] == 1).all()


def test_values_that_are_not_finite_are_left_out_and_counted():
    result = planted()
    frame = result.frame.copy()
    frame.loc[frame["layer"] == 2, "value"] = np.nan
    frame.loc[0, "value"] = np.inf
    means = Result("x", frame, {}).mean(["layer", "module"])
    assert means["n"].tolist() == [39, 40, 40, 40, 0, 0]
    assert np.isfinite(means["mean"][:4]).all() and means["mean"][4:].isna().all()


def test_where_keeps_the_rows_asked_for():
    kept = planted(model="m").where(layer=1, module="attn")
    assert kept.examples == 40 and len(kept.frame) == 40 and kept.provenance == {"model": "m"}


def test_groups_of_one_draw_belong_together():
    column = np.random.default_rng(0).normal(size=(30, 1))
    draws = bootstrap_means(np.hstack([column, column + 1]), resamples=50)
    assert np.allclose(draws[:, 1] - draws[:, 0], 1)

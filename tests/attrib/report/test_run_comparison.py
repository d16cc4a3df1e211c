"""Two runs compared: paired, on shared examples and groups."""

import numpy as np
import pandas as pd
import pytest

import attrib
from attrib.cli.compare import CompareOptions
from attrib.cli.compare import compare as compare_command
from attrib.errors import AttribError
from attrib.results import Result, tidy
from attrib.stats import bootstrap_weights, interval


def result(seed, examples=range(9), layers=range(3), name="contributions", **provenance):
    rng = np.random.default_rng(seed)
    values = (
        rng.normal(size=(len(examples), len(layers), 2))
        + 10 * np.arange(len(examples))[:, None, None]
    )
    table = tidy(
        values, example=[f"e{i}" for i in examples], layer=list(layers), module=["attn", "mlp"]
    )
    return Result(name, table, provenance)


def test_differences_are_paired_and_their_intervals_are_those_of_the_bootstrap():
    one, other = result(0), result(1)
    found = attrib.compare(one, other, resamples=50, seed=3)
    pairs = one.frame.merge(other.frame, on=["example", "layer", "module"])
    pairs["change"] = pairs["value_x"] - pairs["value_y"]
    wide = pairs.pivot(index="example", columns=["module", "layer"], values="change").sort_index(
        axis=1
    )
    assert found.by == ("module", "layer")
    np.testing.assert_allclose(found.frame["difference"], wide.mean())
    np.testing.assert_allclose(found.frame["one"] - found.frame["other"], wide.mean())
    weights = bootstrap_weights(9, resamples=50, seed=3)[1:]
    low, high = interval(weights @ wide.to_numpy() / weights.sum(1, keepdims=True))
    np.testing.assert_allclose(found.frame["low"], low)
    np.testing.assert_allclose(found.frame["high"], high)
    # The examples differ by far more than the runs: unpaired intervals would be wider.
    means = one.mean(["layer"])
    assert (found.frame["high"] - found.frame["low"]).max() < (means["high"] - means["low"]).min()


def test_a_run_equals_itself_in_whatever_order_its_rows_are():
    one = result(0)
    shuffled = Result(one.analysis, one.frame.sample(frac=1, random_state=1), one.provenance)
    frame = attrib.compare(one, shuffled).frame
    assert (frame[["difference", "low", "high"]] == 0).all(axis=None)
    assert "0 of 6 groups" in attrib.compare(one, shuffled).summary()


def test_only_what_both_have_is_compared_and_the_rest_is_counted():
    found = attrib.compare(result(0, range(9), range(3)), result(1, range(4, 12), range(2)))
    assert (found.shared, found.examples, found.unmatched) == (5, (9, 8), 2)
    assert set(found.frame["layer"]) == {0, 1}
    assert set(found.frame["n"]) == {5}


def test_values_that_are_not_finite_take_their_pair_along():
    one, other = result(0), result(1)
    other.frame.loc[other.frame["example"] == "e2", "value"] = np.nan
    assert set(attrib.compare(one, other).frame["n"]) == {8}


def test_settings_that_differ_are_named():
    one = result(0, model={"name": "a", "fingerprint": "x"}, options={"draws": 1, "out": "p"})
    other = result(0, model={"name": "b", "fingerprint": "y"}, options={"draws": 1, "out": "q"})
    assert attrib.compare(one, other).settings == {"model.name": ("a", "b")}


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (result(1, name="attention"), {}, "contributions cannot be compared with attention"),
        (result(1, range(20, 25)), {}, "share no example"),
        (result(1, layers=(7, 8)), {}, "no group"),
        (result(1), {"by": ["head"]}, "'head'; they share layer, module"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, options, message):
    with pytest.raises(AttribError, match=message):
        attrib.compare(result(0), other, **options)


def test_the_command_writes_the_table_and_the_figure(tmp_path, capsys):
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        result(seed).save(folder / "result.parquet")
    options = CompareOptions(runs=folders, out=tmp_path / "out", by="layer")
    assert compare_command(options) == 0
    table = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert list(table["layer"]) == [0, 1, 2]
    assert (tmp_path / "out" / "differences.png").stat().st_size > 1000
    assert "9 shared examples" in capsys.readouterr().out
    for runs, message in ((folders[:1], "two runs"), ([tmp_path, folders[0]], "no results")):
        with pytest.raises(AttribError, match=message):
            compare_command(CompareOptions(runs=runs, out=tmp_path / "out"))

"""Selection from planted evidence: what was planted is found, and nothing where nothing was."""

import numpy as np
import planted_layers as planted
import pytest

from attrib.errors import AttribError
from attrib.results import Result
from attrib.selection import evidence_table, gather, select_layers
from attrib.selection.rules import step_score
from attrib.selection.select import choose

STEP, LOUD, PASSES, READ = planted.STEP, planted.LOUD, planted.PASSES, planted.READ


def test_every_rule_finds_what_was_planted():
    report = select_layers(planted.evidence())
    for modality, patched in (("text", READ - 1), ("visual", PASSES - 1)):
        choices = report.choices[modality]
        assert choices["onset"].layer == choices["onset-attn"].layer == STEP - 1
        assert choices["sensitivity"].layer == LOUD and choices["patching"].layer == patched
        assert choices["patching"].examples == 20
        for name in ("onset", "sensitivity", "patching"):
            choice = choices[name]
            assert choice.share > 0.99 and (choice.low, choice.high) == (choice.layer,) * 2
            assert choice.ranking[0] == choice.layer and np.isclose(sum(choice.shares), 1)
        assert report.agreement[modality]["spread"] == STEP - 1 - LOUD
    assert report.layers == {m: [report.choices[m]["consensus"].layer] for m in report.layers}
    assert not report.left_out


def test_the_modules_are_told_apart():
    steps = [(np.arange(planted.LAYERS) >= at).astype(float) for at in (4, 9)]
    choices = select_layers([planted.contributions(*steps)]).choices["visual"]
    assert (choices["onset-attn"].layer, choices["onset-mlp"].layer) == (3, 8)


def test_agreeing_rules_make_the_consensus_and_the_last_layer_is_never_chosen():
    same = [planted.contributions(), planted.sweep("text", np.eye(planted.LAYERS)[STEP - 1]),
            planted.patching(last=STEP)]  # fmt: skip
    report = select_layers(same)
    assert report.layers["text"] == [STEP - 1] and report.agreement["text"]["spread"] == 0
    everywhere = planted.sweep("visual", np.arange(planted.LAYERS))
    assert select_layers([everywhere], "sensitivity").layers["visual"] == [planted.LAYERS - 2]


def test_the_consensus_takes_the_latest_of_layers_that_samples_cannot_tell_apart():
    def scores(noise):
        drawn = np.random.default_rng(0).normal(size=(400, 6)) * noise
        drawn[0] = 0
        return np.array([0.1, 0.9, 0.89, 0.5, 0.88, 0.2]) + drawn

    assert choose(scores(0.001), 9).layer == choose(scores(0.1), 9).layer == 1
    sure, unsure = (choose(scores(noise), 9, latest=True) for noise in (0.001, 0.1))
    assert sure.layer == 1 and sure.share == 1 and sure.ranking == [1, 2, 4, 3, 5, 0]
    assert unsure.layer == 4 and unsure.ranking == [4, 1, 2, 3, 5, 0]
    assert unsure.shares[4] == max(unsure.shares) and np.isclose(sum(unsure.shares), 1)
    alone = choose(scores(0.1)[:1], 1, latest=True)
    assert alone.layer == 1  # one sample has no standard error


def test_flat_curves_give_low_confidence():
    flat = np.full(planted.LAYERS, 0.3)
    report = select_layers([planted.contributions(flat, flat, noise=0.2)])
    assert report.choices["text"]["onset"].share < 0.7
    sweep = select_layers([planted.sweep("text", flat, noise=0.1)]).choices["text"]["sensitivity"]
    assert sweep.share < 0.5 and sweep.high - sweep.low > planted.LAYERS // 2
    exactly = select_layers([planted.sweep("text", flat, noise=0)]).choices["text"]["sensitivity"]
    assert np.allclose(exactly.shares[:-1], 1 / (planted.LAYERS - 1)) and exactly.shares[-1] == 0


def test_the_order_of_examples_rows_and_tables_does_not_matter():
    tables = planted.evidence()
    shuffled = [
        Result(t.analysis, t.frame.sample(frac=1, random_state=1, ignore_index=True), t.provenance)
        for t in tables
    ]
    first, again = select_layers(tables), select_layers(shuffled[::-1])
    for modality in first.choices:
        for rule, choice in first.choices[modality].items():
            other = again.choices[modality][rule]
            assert (choice.layer, choice.examples) == (other.layer, other.examples)
            assert np.allclose(choice.shares, other.shares, atol=0.003)
            assert np.allclose(choice.scores[:-1], other.scores[:-1])
    assert select_layers({t.analysis + str(i): t for i, t in enumerate(tables)}) == first


def test_other_draws_hardly_change_what_is_said_and_the_seed_fixes_it():
    tables = planted.evidence()
    assert select_layers(tables, seed=1) == select_layers(tables, seed=1)
    assert select_layers(tables, seed=2).layers == select_layers(tables, seed=1).layers


def test_a_missing_analysis_is_left_out_and_said():
    report = select_layers([planted.contributions(), planted.sweep("visual")])
    assert set(report.choices["text"]) == {"onset", "onset-attn", "onset-mlp", "consensus"}
    told = " ".join(report.left_out)
    assert "sensitivity of text left out" in told and "attrib sweep --modality text" in told
    assert "patching of visual left out" in told and "`attrib patching`" in told
    assert "attention" not in told  # it has no vote, nobody asked for it
    assert report.layers["text"] == [STEP - 1]


def test_a_modality_without_evidence_has_no_layer():
    report = select_layers([planted.sweep("visual")], "sensitivity")
    assert report.layers == {"text": [], "visual": [LOUD]}
    with pytest.raises(AttribError, match=r"by patching: .*run `attrib patching`"):
        select_layers([planted.sweep("visual")], "patching")


def test_evidence_that_speaks_for_no_layer_is_left_out():
    falls = np.linspace(1, 0, planted.LAYERS)
    tables = [planted.contributions(falls, falls, noise=0), planted.sweep("text"),
              planted.sweep("visual", 0 * falls, noise=0), planted.patching(same=24)]  # fmt: skip
    report = select_layers(tables)
    told = " ".join(report.left_out)
    assert "onset of text left out: no layer has a positive score" in told
    assert "sensitivity of visual left out: no layer has" in told and "the same answer" in told
    assert report.layers == {"text": [LOUD], "visual": []}


@pytest.mark.parametrize("tables", [[], [planted.result("gate", np.zeros((2, 3)), layer=range(3))]])
def test_nothing_at_all_names_the_commands_that_make_evidence(tables):
    with pytest.raises(AttribError, match=r"contributions.*sweep.*patching") as error:
        select_layers(tables)
    assert "attrib select --model" in str(error.value)


def test_the_control_is_no_evidence():
    wrong = planted.contributions(options={"key": "wrong"})
    with pytest.raises(AttribError, match="no evidence"):
        select_layers([wrong])
    early = (np.arange(planted.LAYERS) >= 2).astype(float)
    both = [planted.contributions(), planted.contributions(early, early, options=wrong.provenance
            ["options"])]  # fmt: skip
    assert select_layers(both).layers["text"] == [STEP - 1]


def test_results_of_two_models_or_two_datasets_are_refused_naming_both():
    one = planted.contributions()
    for part, other, names in (
        ("model", {"name": "other", "fingerprint": "ffff0000ff"}, ("planted", "other")),
        ("model", {"layers": 3}, ("12 layers", "3 layers")),
        ("data", {"name": "else", "sha256": "9999"}, ("scenes-vqa", "else")),
        ("data", {"split": "train"}, ("test", "train")),
    ):
        with pytest.raises(AttribError, match=f"for one {part}") as error:
            select_layers([one, planted.sweep("text", **{part: other})])
        assert all(name in str(error.value) for name in names)
    more_rows = planted.sweep("text", examples=30, data={"limit": 30})
    assert select_layers([one, more_rows]).choices["text"]["sensitivity"].examples == 30


def test_the_sweep_that_spares_the_last_token_counts():
    whole = planted.sweep("text", np.eye(planted.LAYERS)[9])
    spared = planted.sweep("text", options={"spare_last": True})
    for tables in ([whole, spared], [spared, whole]):
        assert select_layers(tables, "sensitivity").layers["text"] == [LOUD]
    assert select_layers([whole], "sensitivity").layers["text"] == [9]


def test_the_area_over_sigma_is_that_of_trapezoids_from_no_noise():
    evidence = gather([planted.sweep("text", noise=0)])
    heights = np.array([0.0, *planted.SIGMAS])
    peak = np.exp(-((np.arange(planted.LAYERS) - LOUD) ** 2) / 4)
    expected = peak * np.trapezoid(heights, heights)
    assert np.allclose(evidence.curves["noise text"], expected)


def test_a_sweep_over_some_layers_scores_those():
    part = planted.sweep("text")
    some = Result("sweep", part.frame[part.frame["layer"].isin([2, 5])], part.provenance)
    choice = select_layers([some, planted.contributions()]).choices["text"]["sensitivity"]
    assert choice.ranking == [2, 5]
    combined = select_layers([some, planted.contributions()]).choices["text"]["consensus"]
    assert sorted(combined.ranking) == [2, 5]


def test_evidence_is_tabled_with_intervals():
    table = evidence_table(gather(planted.evidence()))
    assert set(table["evidence"]) == {
        "contributions", "contributions attn", "contributions mlp", "noise text", "noise visual",
        "follows visual", "stays visual", "follows last", "stays last",
    }  # fmt: skip
    row = table[(table["evidence"] == "contributions attn") & (table["layer"] == STEP)].iloc[0]
    assert row["low"] < row["mean"] < row["high"] and row["n"] == planted.EXAMPLES
    assert set(table.loc[table["evidence"] == "follows visual", "n"]) == {20}


def test_scores_are_those_of_the_curves():
    report = select_layers(planted.evidence())
    mean = gather(planted.evidence()).curves["contributions"].mean(0)
    assert np.allclose(report.choices["text"]["onset"].scores[:-1], step_score(mean[None])[0, :-1])
    table = report.scores()
    rows = table[(table["modality"] == "text") & (table["evidence"] == "onset")]
    assert rows["value"].tolist() == list(report.choices["text"]["onset"].scores[:-1])
    assert set(table["layer"]) == set(range(planted.LAYERS - 1))


def test_attention_and_pointing_are_scored_by_the_layer_that_reads_and_do_not_vote():
    share = np.full((6, planted.LAYERS, 2), 0.1)
    share[:, 8, 1] = 0.9
    attention = planted.result(
        "attention", share, layer=range(planted.LAYERS), statistic=("text_sum", "visual_sum")
    )
    hits = planted.result(
        "faithfulness", np.eye(planted.LAYERS)[[4] * 6][:, :, None, None],
        layer=range(planted.LAYERS), method=("heatmap",), statistic=("hit",),
    )  # fmt: skip
    tables = [*planted.evidence(), attention, hits]
    report, without = select_layers(tables), select_layers(planted.evidence())
    assert report.choices["visual"]["attention"].layer == 7
    assert report.choices["visual"]["pointing"].layer == 3
    assert "pointing" not in report.choices["text"]
    assert report.layers == without.layers
    assert select_layers(tables, "pointing").layers == {"text": [], "visual": [3]}


def test_one_example_says_nothing_about_others():
    report = select_layers([planted.contributions(examples=1)])
    choice = report.choices["text"]["onset"]
    assert choice.examples == 1 and choice.layer == STEP - 1


def test_several_layers_are_the_first_of_the_ranking():
    report = select_layers(planted.evidence(), "sensitivity", number=3)
    assert report.layers["text"] == report.choices["text"]["sensitivity"].ranking[:3]
    assert set(report.layers["text"]) == {LOUD - 1, LOUD, LOUD + 1}


@pytest.mark.parametrize("wrong", [{"number": 0}])
def test_a_wrong_argument_is_refused(wrong):
    with pytest.raises(AttribError, match="at least one layer"):
        select_layers(planted.evidence(), **wrong)

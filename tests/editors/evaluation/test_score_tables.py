"""Tables of scores: planted results, worked by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import picture
from planted_scores import result

from attrib.data import EditRequest, EditSample, load
from attrib.errors import AttribError
from editors.evaluation.items import item_of
from editors.evaluation.tables import costs, save_tables, summary
from editors.evaluation.terminal_tables import terminal_tables


def test_the_unedited_model_stands_first_and_protocols_apart():
    table = summary([result(0.75, "b"), result(0.5, "a", "learned")])
    assert list(dict.fromkeys(table["editor"])) == ["unedited", "b", "a"]
    assert list(dict.fromkeys(table["protocol"])) == ["paper", "generate"]
    rel = table[(table["protocol"] == "paper") & (table["metric"] == "rel")]
    assert rel["mean"].tolist() == [0, 75, 50] and set(rel["n"]) == {4}
    assert rel["gate"].tolist() == ["-", "ungated", "learned"]
    # Wilson's of 0 of 4; the others are shares of tokens, all alike.
    assert rel["low"].tolist() == [0, 75, 50] and (rel["runs"] == 1).all()
    assert rel["high"].tolist() == [pytest.approx(48.99, abs=0.01), 75, 50]


def test_seeds_of_one_editor_are_one_row_with_their_spread():
    table = summary([result(0.5), result(0.75), result(1.0)])
    (row,) = table[(table["editor"] == "mine") & (table["metric"] == "rel")
                   & (table["protocol"] == "paper")].to_dict("records")  # fmt: skip
    assert row["mean"] == pytest.approx(75) and (row["runs"], row["n"]) == (3, 4)
    assert row["spread"] == pytest.approx(np.std([50, 75, 100], ddof=1))
    unedited = table[table["editor"] == "unedited"]
    assert set(unedited["runs"]) == {1} and unedited["spread"].isna().all()


def test_edits_that_share_a_locality_question_are_resampled_together():
    made, rng = result(0.5, num=40), np.random.default_rng(0)
    frame = made.frame
    local = frame["metric"] == "m_loc"
    right = np.arange(local.sum()) // 4 % 20 < 10  # four rows of an example, in order
    frame.loc[local, "value"] = right.astype(float)

    def interval_of(items):
        frame.loc[local, "item"] = items
        table = summary([made])
        row = table[(table["metric"] == "m_loc") & (table["editor"] == "mine")].iloc[0]
        return row["mean"], row["low"], row["high"], row["n"]

    own = list(frame.loc[local, "example"])
    mean, low, high, n = interval_of(own)
    assert (mean, n) == (50, 40) and 30 < low < 45 and 55 < high < 70
    pairs = np.arange(local.sum()) // 4 % 20 // 10  # two questions: all right, and all wrong
    few = interval_of([f"pair {i}" for i in pairs])
    assert few[1] < 10 and few[2] > 90  # Wilson's of 1 of 2
    one = interval_of(["the same"] * local.sum())
    assert one[0] == 50 and np.isnan(one[1]) and np.isnan(one[2])  # one item has no spread
    assert interval_of(rng.permutation(own))[0] == 50
    frame.loc[local, "value"] = 1.0
    mean, low, high, _ = interval_of(own)
    assert (mean, high) == (100, 100) and low == pytest.approx(91.2, abs=0.1)  # 40 of 40
    assert interval_of([f"pair {i}" for i in pairs])[1] < 40  # 2 of 2: not [100, 100]


def test_the_item_of_a_score_is_the_fact_or_the_image_that_it_is_about():
    def sample(name, answer):
        request = EditRequest(None, "What is it?", "a cat")
        local = [EditRequest(None, "nq question: who?", answer)]
        return EditSample(name, request, text_locality=local)

    edited = EditRequest(None, "What is it?", "a dog")
    one, other, third = sample("a", "Emma"), sample("b", "Emma"), sample("c", "Jane")
    assert item_of(one, "t_loc") == item_of(other, "t_loc") != item_of(third, "t_loc")
    assert item_of(one, "rel") == item_of(other, "rel") == item_of(third, "rel")
    assert item_of(one, "avg") == item_of(one, "t_loc")
    shown = [EditSample(n, EditRequest(picture(), n, n)) for n in ("a", "b")]
    assert item_of(shown[0], "rel") == item_of(shown[1], "rel")  # edits of one picture
    assert item_of(one, "rel") != item_of(replace(one, request=edited), "rel")
    near, same, far = (
        EditSample(name, edited, visual_locality=[EditRequest(picture(seed=n), "Who?", "she")])
        for name, n in (("a", 1), ("b", 1), ("c", 2))
    )
    assert item_of(near, "m_loc") == item_of(same, "m_loc") != item_of(far, "m_loc")


def test_gates_of_one_editor_are_rows_of_their_own():
    table = summary([result(0.5), result(0.25, gate="sequence_last (reads the answer)")])
    rel = table[(table["editor"] == "mine") & (table["metric"] == "rel")]
    assert dict(zip(rel["gate"], rel["mean"], strict=True)) == {
        "ungated": 50, "sequence_last (reads the answer)": 25,
    }  # fmt: skip
    shown = terminal_tables([result(0.5, gate=table["gate"].iloc[-1])])
    assert "sequence_last (reads the answer)" in shown


def test_costs_are_medians_and_a_ratio_of_passes_of_the_same_edit():
    (row,) = costs([result(0.5)]).to_dict("records")
    assert (row["edit_ms"], row["bytes"], row["latency"]) == (1.5, 8, 1.5)
    assert "bytes" not in set(summary([result(0.5)])["metric"])


def test_scores_of_different_models_are_not_put_into_one_table():
    with pytest.raises(AttribError, match=r"different model .* m f and other f"):
        summary([result(0.5), result(0.5, model="other")])
    with pytest.raises(AttribError, match="no scores to tabulate"):
        summary([])


def test_scores_of_a_file_that_was_changed_are_not_put_into_one_table(tmp_path):
    """The digest is of the whole file: more of its rows, or another seed, are the same data."""
    file = tmp_path / "edits.csv"

    def scored(text, editor, limit=None, seed=0):
        file.write_text(f"prompt,target\n{text}")
        data, made = load(file, limit=limit), result(0.5, editor)
        about = {"name": data.name, "split": data.split, **data.provenance}
        return replace(made, provenance={**made.provenance, "data": about, "seed": seed})

    text = "Who?,Emma\nWhere?,here\n"
    one, more, again = scored(text, "a", 1), scored(text, "b", 2), scored(text, "b", seed=1)
    assert set(summary([one, more, again])["editor"]) == {"unedited", "a", "b"}
    changed = scored(text.replace("Emma", "Jane"), "b", 2)
    with pytest.raises(AttribError, match=r"different data .*csv \w{8} and .*csv \w{8}"):
        summary([one, changed])
    bare = replace(more, provenance={**more.provenance, "data": {"name": str(file)}})
    assert len(summary([one, bare]))  # scored without a digest: by its name
    with pytest.raises(AttribError, match="different data"):
        summary([one, bare, changed])


def test_tables_are_written_for_people_and_programs(tmp_path):
    files = save_tables([result(0.5), result(1.0, "other")], tmp_path)
    assert [path.name for path in files] == ["summary.csv", "costs.csv", "summary.md"]
    text = files[2].read_text()
    assert "| mine | ungated | 50.0 [50.0, 50.0] | 100.0 [51.0, 100.0] |" in text
    assert text.index("### Protocol paper") < text.index("### Protocol generate")
    assert "over 4 edits" in text and "| other | ungated | 1.5 | 8 | 2 | 3 | 1.5 |" in text
    back = pd.read_csv(files[0])
    assert back["mean"].tolist() == summary([result(0.5), result(1.0, "other")])["mean"].tolist()

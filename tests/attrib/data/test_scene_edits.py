import pytest
from easyedit_files import outside

from attrib.data.scenes import make_scene, open_image
from attrib.data.scenes.edits import DIGESTS, NUM_EDITS, digest_of, edit_rows
from attrib.data.scenes.questions import KINDS, answers_of
from attrib.data.scenes.vocabulary import OPTIONS
from attrib.data.sources import scenes_source

FIELDS = (
    *("src", "pred", "alt", "rephrase", "image", "image_rephrase"),
    *("loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a"),
)
SPLITS = tuple(NUM_EDITS)
WHOLE_SPLITS = """
import json
from attrib.data.scenes.edits import DIGESTS, NUM_EDITS, digest_of, edit_rows
from attrib.data.scenes.ground_truth import ground_truth

def option(text, letter):
    return text.split(f" {letter} ")[1].split(",")[0].rstrip(".")

wrong = {"sizes": [], "digests": [], "questions": []}
for task, split in DIGESTS:
    rows = edit_rows(task, split)
    if len(rows) != NUM_EDITS[split]:
        wrong["sizes"].append([task, split])
    if digest_of(rows) != DIGESTS[task, split]:
        wrong["digests"].append([task, split])
    for row in rows if task == "vqa" and split != "train" else []:
        question = ground_truth(row).question
        answer = option(row["src"], row["pred"]) if " A " in row["src"] else row["pred"]
        if (question.answer, question.kind) != (answer, row["kind"]):
            wrong["questions"].append(row["src"])
print(json.dumps(wrong))
"""


@pytest.fixture(scope="module")
def edits():
    """The first 60 edits of every split of both tasks."""
    tasks = ("vqa", "captions")
    return {(task, split): edit_rows(task, split, limit=60) for task in tasks for split in SPLITS}


def scene_of(name):
    return make_scene(int(name.removeprefix("scenes/").split("_")[0]))


def scenes_in(row):
    hard = [item["image"] for item in row["hard"]]
    return {scene_of(n) for n in (row["image"], row["image_rephrase"], row["m_loc"], *hard)}


def test_every_split_has_its_size_and_its_digest_and_every_question_parses_to_its_answer():
    wrong = outside(WHOLE_SPLITS)
    assert wrong == {"sizes": [], "digests": [], "questions": []}


def test_few_rows_are_made_alone_with_the_digest_of_the_whole_split():
    few = scenes_source("scenes-captions", "validation", 0, 5)
    whole = edit_rows("captions", "validation", limit=10)
    assert few.rows == whole[:5] and few.digest == DIGESTS["captions", "validation"]
    other = scenes_source("scenes-captions", "validation", 1, 5)  # whose digest is not known
    assert len(other.rows) == 300 and other.digest == digest_of(other.rows)


def test_every_field_is_there(edits):
    for made in edits.values():
        assert all(isinstance(row[f], str) and row[f] for row in made for f in FIELDS)


def test_rows_are_the_same_for_the_same_seed_and_differ_for_another(edits):
    assert edit_rows("vqa", "test", limit=20) == edits["vqa", "test"][:20]
    assert edit_rows("vqa", "test", seed=1, limit=20) != edits["vqa", "test"][:20]


def test_splits_share_no_scene(edits):
    pools = {
        split: {s for task in ("vqa", "captions") for r in edits[task, split] for s in scenes_in(r)}
        for split in SPLITS
    }
    assert sum(map(len, pools.values())) == len(set.union(*pools.values()))
    assert all(scene.split == split for split, pool in pools.items() for scene in pool)


def test_splits_share_no_text_fact(edits):
    asked = [{r["loc"] for r in edits["vqa", split]} for split in SPLITS]
    assert sum(map(len, asked)) == len(set.union(*asked))


def test_the_target_is_another_answer_of_the_same_kind(edits):
    for row in edits["vqa", "train"]:
        assert row["alt"] != row["pred"]
        assert row["alt"] in answers_of(row["kind"], row["pred"])
    assert {row["kind"] for row in edits["vqa", "test"]} == set(KINDS)


def test_the_rephrase_differs(edits):
    assert all(r["src"] != r["rephrase"] for made in edits.values() for r in made)


def test_the_visual_rephrase_is_the_same_scene_drawn_again(edits):
    for row in edits["vqa", "test"][:20]:
        assert scene_of(row["image"]) == scene_of(row["image_rephrase"])
        assert open_image(row["image"]).tobytes() != open_image(row["image_rephrase"]).tobytes()


def test_hard_locality_is_what_its_type_says(edits):
    for row in edits["vqa", "test"]:
        types = [item["type"] for item in row["hard"]]
        assert {"same_image_same_kind", "same_question_other_image"} <= set(types)
        for item in row["hard"]:
            same_image = scene_of(item["image"]) == scene_of(row["image"])
            assert same_image == item["type"].startswith("same_image")
            assert (item["prompt"] == row["src"]) == (item["type"] == "same_question_other_image")


def test_a_multiple_choice_keeps_its_options_and_is_answered_by_a_letter(edits):
    asked = [row for row in edits["vqa", "test"] if row["pred"] in OPTIONS]
    assert 0.1 < len(asked) / len(edits["vqa", "test"]) < 0.4
    for row in asked:
        options = row["src"][row["src"].index(" A ") :]
        assert row["rephrase"].endswith(options) and row["alt"] in OPTIONS
        (other,) = [h for h in row["hard"] if h["type"] == "same_question_other_image"]
        assert other["target"] in OPTIONS


def test_a_caption_edit_keeps_the_places_and_changes_every_thing(edits):
    for row in edits["captions", "test"][:50]:
        old, new = row["pred"].split(), row["alt"].split()
        assert len(old) == len(new) and old != new
        assert row["src"] == "a photo of"


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no scenes split 'eval'"):
        edit_rows("vqa", "eval")

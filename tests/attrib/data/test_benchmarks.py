"""Other benchmarks: the same samples from their rows, and faults named in their words."""

import json
import os
from pathlib import Path

import pytest
from easyedit_files import row, without
from PIL import Image

from attrib.data import load
from attrib.data.benchmarks import BENCHMARKS, SPLITS
from attrib.data.check import check
from attrib.data.prompt_styles import STYLES, style_named
from attrib.errors import AttribError, SetupError

PORT = {"port_edit_q": "When?", "port_edit_a": "then", "port_q": "Which time?", "port_a": "noon"}
HOPS = [
    {"port_type": f"{n}-hop", "Q&A": {"Question": f"Over {n}?", "Answer": f"so {n}"}}
    for n in (1, 2)
]
COMP = [{"port_type": "comp", "Q&A": {"Question": "Both?", "Answer": "both", "Query": "q"}}]
TEXT = {"src": "Who?", "pred": ["a"], "alt": ["she", "did"], "rephrase": "By whom?", "loc": "l",
        "loc_ans": "a"}  # fmt: skip
COMPREHEND = {
    "image": "val/0.png", "question": "How many?", "rephrase": "What number?", "answer": "2",
    "source": "TallyQA", "Category": "count", "pid": 0, "locality_prompt": "who was king",
    "locality_ground_truth": "Louis", "multimodal_locality_image": "val/100.png",
    "multimodal_locality_prompt": "What sport?", "multimodal_locality_ground_truth": "tennis",
}  # fmt: skip
MMKE = {
    "entity": {"knowledge_type": "entity_level", "rel_1": "Who is it?", "rel_1_ans": "she",
               "rel_2": "And?", "rel_ans_2": "he", "m_rel_1": "Who is here?", "m_rel_ans_1": "her",
               "m_rel_2": "Where?", "m_rel_2_ans": "here", "port_new": HOPS},
    "visual": {"knowledge_type": "visual_knowledge", "rel": "What is it?", "rel_ans": "a sign",
               "m_rel": "What is shown?", "m_rel_ans": "a hand", "one_hop_img": "val/200.png",
               "port_new": HOPS[:1], "image_rephrase_question": "And here?"},
}  # fmt: skip
ROWS = {
    "vlkeb-onehop": [row(0, port_new=[PORT]), row(1, image="gone.png", port_new=[PORT])],
    "vlkeb-multihop": [row(0, port_new=HOPS)],
    "mmke-entity-eval": [row(0, **MMKE["entity"])],
    "mmke-visual-eval": [row(0, **MMKE["visual"])],
    "comprehendedit-test": [COMPREHEND],
    "cckeb-eval": [row(0, port_new=COMP, textual_edit=TEXT)],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder per split, in its benchmark's layout, with the pictures."""
    made = {}
    for split, rows in ROWS.items():
        folder, benchmark = tmp_path_factory.mktemp(split), BENCHMARKS[split.split("-")[0]]
        (folder / SPLITS[split]).parent.mkdir(parents=True, exist_ok=True)
        (folder / SPLITS[split]).write_text(json.dumps(rows))
        for name in ("val/0.png", "val/1.png", "rephrase/0.png", "val/100.png", "val/200.png"):
            place = folder / benchmark.images / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4 + len(name), 3)).save(place)
        made[split] = folder
    return made


def asked(requests):
    return [(one.image is not None, one.prompt, one.target) for one in requests]


def test_portability_of_one_hop_comes_with_the_fact_behind_it(folders):
    data = load(folders["vlkeb-onehop"], "vlkeb-onehop")
    (sample,) = data
    (gone,) = data.quarantined  # set aside by name
    assert (gone.row, gone.field) == (1, "image") and "gone.png" in gone.reason
    assert asked(sample.portability) == [(True, "Which time?", "noon")]
    assert sample.portability[0].image.size == sample.request.image.size
    assert asked(sample.linked) == [(False, "When?", "then")]
    assert sample.meta["portability_types"] == ["1-hop"]
    assert sample.request.prompt == "What is number 0?"  # bare, as VLKEB asks
    assert sample.portability[0] in sample.requests and sample.linked[0] not in sample.requests


def test_portability_over_hops_and_of_two_edits(folders):
    hops = load(folders["vlkeb-multihop"], "vlkeb-multihop")[0]
    assert hops.meta["portability_types"] == ["1-hop", "2-hop"] and not hops.linked
    assert [one.target for one in hops.portability] == ["so 1", "so 2"]
    both = load(folders["cckeb-eval"], "cckeb-eval")[0]
    assert both.meta["portability_types"] == ["comp"]
    assert asked(both.linked) == [(False, "Who?", "she did")]  # words joined as its loader does


def test_reliability_by_text_and_by_picture(folders):
    entity = load(folders["mmke-entity-eval"], "mmke-entity-eval")[0]
    assert asked(entity.text_reliability) == [
        (False, "Who is it?", "she"), (False, "And?", "he"),
    ]  # fmt: skip
    assert asked(entity.picture_reliability) == [
        (True, "Who is here?", "her"), (True, "Where?", "here"),
    ]  # fmt: skip
    assert entity.portability[0].image.size == entity.request.image.size
    visual = load(folders["mmke-visual-eval"], "mmke-visual-eval")[0]
    assert asked(visual.text_reliability) == [(False, "What is it?", "a sign")]
    assert visual.portability[0].image.size != visual.request.image.size  # one_hop_img


def test_a_benchmark_without_another_image_asks_by_its_source(folders):
    sample = load(folders["comprehendedit-test"], "comprehendedit-test", need=("image", "m_loc"))[0]
    assert sample.visual_generality == []
    assert sample.request.prompt == "Question: How many? Answer with a number. Short answer:"
    assert sample.text_locality[0].prompt == "who was king"
    local = "Question: What sport? Short answer:"
    assert asked(sample.visual_locality) == [(True, local, "tennis")]
    plain = load(folders["comprehendedit-test"], "comprehendedit-test", style="bare")[0]
    assert plain.request.prompt == "How many?"


@pytest.mark.parametrize(("split", "bad", "place", "why"), [
    ("vlkeb-onehop", row(0, port_new={}), "port_new", "not a list"),
    ("vlkeb-onehop", row(0, port_new=[PORT | {"port_a": ""}]), "portability[0].target", "empty"),
    ("vlkeb-multihop", row(0, port_new=[{"port_type": "1-hop"}]), "port_new[0].Q&A", "missing"),
    ("mmke-entity-eval", row(0), "rel", "missing"),
    ("mmke-entity-eval", row(0, rel="Who?"), "reliability[0].target", "null"),
    ("comprehendedit-test", without(COMPREHEND, "question"), "question", "is missing"),
    ("comprehendedit-test", COMPREHEND | {"answer": 2}, "answer", "is a number"),
    ("cckeb-eval", row(0, textual_edit=[]), "textual_edit", "no object"),
])  # fmt: skip
def test_a_fault_is_named_in_the_words_of_the_file(split, bad, place, why, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([bad]))
    data = load(tmp_path / "rows.json", split, need=())
    (fault,) = data.quarantined
    assert fault.field == place and why in fault.reason and not len(data)


@pytest.mark.parametrize("split", ROWS)
def test_every_benchmark_can_be_checked(folders, split):
    images = folders[split] / BENCHMARKS[split.split("-")[0]].images
    report = check(folders[split], images)
    assert report.files[split]["rows"] == len(ROWS[split]) and not report.files[split]["malformed"]
    assert report.images["missing"][:1] == (["gone.png"] if split == "vlkeb-onehop" else [])
    assert all(name.startswith(split.split("-")[0]) for name in report.absent)
    assert split in report.to_markdown()


def test_what_is_no_benchmark_is_refused(folders, tmp_path):
    with pytest.raises(AttribError, match=r"no split 'vqa'; .* has vlkeb-onehop"):
        load(folders["vlkeb-onehop"], "vqa")
    with pytest.raises(AttribError, match="no prompt style 'long'; there are visedit, bare"):
        load(folders["vlkeb-onehop"], "vlkeb-onehop", style="long")
    (tmp_path / "x.dat").write_text("[]")
    with pytest.raises(AttribError, match=r"x\.dat: say what it holds, as a split: one of vqa"):
        load(tmp_path / "x.dat")
    with pytest.raises(SetupError, match=r"holds none of vqa/vqa_train\.json"):
        check(tmp_path)


def test_styles_are_those_of_the_programs():
    assert {n: s.asked("What?") for n, s in STYLES.items()} == {
        "visedit": "What? The answer is:", "bare": "What?",
        "short-answer": "Question: What? Short answer:",
        "comprehendedit": "Question: What? Short answer:",
    }  # fmt: skip
    style = style_named("visedit")
    assert style.asked("a photo of", task="captions") == "a photo of"
    assert style.asked("What? The answer is:") == "What? The answer is:"  # not twice
    assert style.unrelated("who", with_image=False) == "who?"


def test_the_real_one_hop_rows_load_and_those_without_pictures_are_set_aside():
    folder = Path(os.environ.get("ATTRIB_VLKEB", Path(__file__).parents[5] / "shared/data/VLKEB"))
    if not (folder / "eval_edit_onehop.json").is_file():
        pytest.skip("no real VLKEB files: un-skip by setting ATTRIB_VLKEB to their folder")
    whole = load(folder, "vlkeb-onehop", need=())
    assert len(whole) == 1278 and not whole.quarantined
    assert all(len(s.portability) == len(s.linked) == 1 for s in whole)
    few = load(folder, "vlkeb-onehop", limit=5)
    assert len(few.quarantined) == 5 and "m.010bxh/bing_0.jpg" in str(few.quarantined[0])

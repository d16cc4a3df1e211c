"""One row: where its fields go, what makes it unusable, what cleaning removes."""

import pytest
from easyedit_files import row, without
from PIL import Image

from attrib.data.benchmarks import BENCHMARKS
from attrib.data.easyedit import ELEVEN, IMAGES, clean_row, validate_row
from attrib.data.images import BadImage
from attrib.data.rows import image_names, to_sample, typed_hard_locality
from attrib.data.samples import EditSample
from attrib.errors import RowError


def sample(fields, benchmark="vqa", opener=lambda _name: Image.new("RGB", (2, 2))) -> EditSample:
    fields = validate_row(fields, "f.json", 7)
    where = {"file": "f.json", "index": 7, "open_image": opener}
    return to_sample(fields, "s/7", benchmark=BENCHMARKS[benchmark], **where)


def named(name: str) -> Image.Image:
    """A picture that tells which name was asked for."""
    image = Image.new("RGB", (1, 1))
    image.info["name"] = name
    return image


def parts(sample: EditSample) -> dict[str, tuple]:
    """Part -> (image name, prompt, target) of the requests of a sample."""
    lists = {
        "request": [sample.request],
        "text generality": sample.text_generality,
        "visual generality": sample.visual_generality,
        "text locality": sample.text_locality,
        "visual locality": sample.visual_locality,
        "hard locality": sample.hard_locality,
    }
    return {
        part: [(r.image and r.image.info["name"], r.prompt, r.target) for r in requests]
        for part, requests in lists.items()
    }


def test_the_parts_of_a_question_row():
    assert parts(sample(row(1), opener=named)) == {
        "request": [("val/1.png", "What is number 1? The answer is:", "cat 1")],
        "text generality": [("val/1.png", "Which thing has number 1? The answer is:", "cat 1")],
        "visual generality": [("rephrase/1.png", "What is number 1? The answer is:", "cat 1")],
        "text locality": [(None, "nq question: who was king number 1?", "Louis 1")],
        "visual locality": [("val/101.png", "What sport is number 1? The answer is:", "tennis 1")],
        "hard locality": [],
    }


def test_the_parts_of_a_caption_row():
    fields = row(1, src="a photo of", rephrase="an image of", alt="A cat. ")
    assert parts(sample(fields, "caption", named)) == {
        "request": [("val/1.png", "a photo of", "A cat. ")],
        "text generality": [("val/1.png", "an image of", "A cat. ")],
        "visual generality": [("rephrase/1.png", "a photo of", "A cat. ")],
        "text locality": [(None, "nq question: who was king number 1?", "Louis 1")],
        "visual locality": [("val/101.png", "What sport is number 1? The answer is:", "tennis 1")],
        "hard locality": [],
    }


def hard(**changes):
    return {"image": "h.png", "prompt": "How many?", "target": "2", "type": "other"} | changes


def test_hard_items_and_extra_fields_are_kept():
    made = sample(row(1, hard=[hard(), hard(prompt="So? The answer is:")], kind="count"))
    prompts = [request.prompt for request in made.hard_locality]
    assert prompts == ["How many? The answer is:", "So? The answer is:"]
    assert made.meta == {
        "task": "vqa",
        "row": 7,
        "pred": "a dog",
        "hard_types": ["other", "other"],
        "kind": "count",
    }


def test_hard_inputs_have_the_types_of_their_row_or_one_for_all():
    made = sample(row(1, hard=[hard(type="near"), hard()]))
    one, other = made.hard_locality
    assert typed_hard_locality(made) == [("near", one), ("other", other)]
    made.meta.clear()
    assert typed_hard_locality(made) == [("hard_locality", one), ("hard_locality", other)]


def test_a_locality_question_without_an_image():
    made = sample(row(m_loc=None))
    assert made.visual_locality[0].image is None
    assert made.visual_locality[0].prompt == "What sport is number 0? The answer is:"


def bad(fields) -> RowError:
    with pytest.raises(RowError) as error:
        validate_row(fields, "f.json", 7)
    assert (error.value.file, error.value.row) == ("f.json", 7)
    return error.value


@pytest.mark.parametrize("field", ELEVEN)
def test_a_missing_field_is_named(field):
    error = bad(without(row(), field))
    assert error.field == field
    assert str(error) == f"f.json: row 7: {field}: is missing"


@pytest.mark.parametrize("field", ELEVEN)
@pytest.mark.parametrize(
    ("value", "kind"),
    [(3, "a number"), (float("nan"), "a number"), ([], "a list"), ({}, "an object")],
)
def test_a_field_that_is_not_text_is_named(field, value, kind):
    reason = f"is {kind}, not text"
    if field in IMAGES and value == []:
        reason = "is an empty list; give the name of an image, or several"
    assert str(bad(row(**{field: value}))) == f"f.json: row 7: {field}: {reason}"


@pytest.mark.parametrize("field", sorted(set(ELEVEN) - {"m_loc"}))
def test_a_field_that_is_null_is_named(field):
    assert str(bad(row(**{field: None}))) == f"f.json: row 7: {field}: is null, not text"


@pytest.mark.parametrize("field", sorted(set(ELEVEN) - {"pred"}))
@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_field_is_named(field, empty):
    assert str(bad(row(**{field: empty}))) == f"f.json: row 7: {field}: is empty"


def test_a_prediction_may_be_empty():
    assert sample(row(pred="")).meta["pred"] == ""


def test_half_a_character_is_named():
    message = "f.json: row 7: alt: holds half a Unicode character at position 3"
    assert str(bad(row(alt="cat\ud83d"))) == message
    assert sample(row(alt="cat😀")).request.target == "cat😀"


@pytest.mark.parametrize(("value", "kind"), [([], "a list"), ("x", "text"), (None, "null")])
def test_a_row_that_is_not_an_object_is_named(value, kind):
    message = f"f.json: row 7: row: is {kind}, not an object with the eleven fields"
    assert str(bad(value)) == message


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("x", "hard: is text, not a list of objects"),
        (["x"], "hard: is a list, not a list of objects"),
        ([hard(), without(hard(), "target")], "hard[1].target: is null, not text"),
        ([hard(prompt="")], "hard[0].prompt: is empty"),
    ],
)
def test_a_bad_hard_item_is_named(items, message):
    assert str(bad(row(hard=items))) == f"f.json: row 7: {message}"


def test_a_refused_image_names_file_row_and_field():
    def refuse(name: str) -> Image.Image:
        raise BadImage(name, "is no good")

    made = sample(row(1, hard=[hard()]), opener=refuse)
    for request, field, name in (
        (made.request, "image", "val/1.png"),
        (made.text_generality[0], "image", "val/1.png"),
        (made.visual_generality[0], "image_rephrase", "rephrase/1.png"),
        (made.visual_locality[0], "m_loc", "val/101.png"),
        (made.hard_locality[0], "hard[0].image", "h.png"),
    ):
        with pytest.raises(RowError) as error:
            _ = request.image
        assert str(error.value) == f"f.json: row 7: {field}: '{name}': is no good"
        assert (error.value.row, error.value.field) == (7, field)


def test_a_field_may_name_several_images_in_order():
    near = hard(image=["d.png", "e.png"])
    fields = row(1, image=["a.png", "b.png"], m_loc=["c.png"], hard=[near])
    assert image_names(fields) == [
        ("image[0]", "a.png"),
        ("image[1]", "b.png"),
        ("image_rephrase", "rephrase/1.png"),
        ("m_loc[0]", "c.png"),
        ("hard[0].image[0]", "d.png"),
        ("hard[0].image[1]", "e.png"),
    ]
    made = sample(fields, opener=named)
    for request in (made.request, *made.text_generality):
        assert [image.info["name"] for image in request.image] == ["a.png", "b.png"]
    assert made.visual_generality[0].image.info["name"] == "rephrase/1.png"
    assert made.visual_locality[0].image.info["name"] == "c.png"  # a list of one is that image
    assert len(made.hard_locality[0].images) == 2
    bad_second = bad(row(image=["a.png", 3]))
    assert str(bad_second) == "f.json: row 7: image[1]: is a number, not text"


def test_the_images_of_a_row():
    fields = row(1, hard=[hard()])
    assert image_names(fields) == [
        ("image", "val/1.png"),
        ("image_rephrase", "rephrase/1.png"),
        ("m_loc", "val/101.png"),
        ("hard[0].image", "h.png"),
    ]
    assert image_names(fields, ("m_loc",)) == [("m_loc", "val/101.png")]
    assert image_names(row(m_loc=None), ("m_loc",)) == []


SRC = "What is number 0?"


@pytest.mark.parametrize(
    ("rephrase", "clean"),
    [
        ("Which one?", "Which one?"),
        ('"Which one?"', "Which one?"),
        ('  "Which one?"\n', "Which one?"),
        (f'"{SRC}"\n\nRewritten as:\n"Which one?"', "Which one?"),
        (f"{SRC}\n\nRewritten as:\nWhich one?", "Which one?"),
        (f'"{SRC}"\n\n"Which one?"\n\n"What one?"', "Which one?"),
        (f'"{SRC}" can be rewritten as "Which one?"', "Which one?"),
        ('Rewritten question: "Which one?"', "Which one?"),
        ("Rewritten question: Which one?", "Which one?"),
        (f'"{SRC}"\n\n"{SRC}"', SRC),
        (SRC, SRC),
        ('"Yes" or "no"?', '"Yes" or "no"?'),
        ('"', '"'),
        ("Rewritten as:", "Rewritten as:"),
    ],
)
def test_cleaning_leaves_one_unquoted_paraphrase(rephrase, clean):
    assert clean_row(row(rephrase=rephrase))["rephrase"] == clean


@pytest.mark.parametrize("alt", ["A cat. ", "A cat.\n", " A cat."])
def test_cleaning_strips_the_target(alt):
    assert clean_row(row(alt=alt))["alt"] == "A cat."


def test_cleaning_changes_nothing_else():
    assert clean_row(row()) == row()
    fields = row(src=' "x" ', loc_ans=" y ", m_loc_a='"z"')
    assert clean_row(fields) == fields

"""Training rows whose texts or images cannot be encoded are set aside by name."""

from conftest import picture, tiny_vlm

from attrib.data import EditRequest, EditSample
from attrib.errors import RowError
from editors.base import encodable


def row(name, target, prompt="What is it?"):
    return EditSample(name, EditRequest(None, "Is it?", "yes"), [EditRequest(None, prompt, target)])


def test_rows_with_texts_that_cannot_be_encoded_are_set_aside_by_name(caplog):
    rows = [row("good", "red"), row("image", "a <image>"), row("long", "red", "x" * 600)]
    kept = encodable(tiny_vlm("llava"), [*rows, row("half", "\ud800")])
    assert [sample.id for sample in kept] == ["good"]
    assert "image is set aside: text_generality: target contains '<image>'" in caplog.text
    assert "long is set aside" in caplog.text and "half is set aside" in caplog.text


def test_images_that_break_only_when_they_are_decoded_are_set_aside_by_row(caplog):
    image = picture()

    def broken():
        raise RowError("'x.jpg': truncated", file="a.json", row=7, field="m_loc")

    def asked(name, prompt="What is it?", **more):
        return EditSample(name, EditRequest(image, prompt, "red"), **more)

    rows = [
        asked("good"),
        asked("broken", visual_locality=[EditRequest(broken, "Is it?", "yes")]),
        asked("long", "x" * 505),  # the decoder's positions suffice without the image
        asked("short", "", hard_locality=[EditRequest(image, "Is it?", "no")]),
    ]
    kept = encodable(tiny_vlm("llava"), rows)
    assert [sample.id for sample in kept] == ["good", "short"]
    assert "broken is set aside: a.json: row 7: m_loc: 'x.jpg': truncated" in caplog.text
    assert "long is set aside: request: prompt has 5" in caplog.text

"""Training rows whose texts cannot be encoded are set aside by name."""

from conftest import tiny_vlm

from attrib.data import EditRequest, EditSample
from editors.base import encodable


def row(name, target, prompt="What is it?"):
    return EditSample(name, EditRequest(None, "Is it?", "yes"), [EditRequest(None, prompt, target)])


def test_rows_with_texts_that_cannot_be_encoded_are_set_aside_by_name(caplog):
    rows = [row("good", "red"), row("image", "a <image>"), row("long", "red", "x" * 600)]
    kept = encodable(tiny_vlm("llava"), [*rows, row("half", "\ud800")])
    assert [sample.id for sample in kept] == ["good"]
    assert "image is set aside: target 0 contains '<image>'" in caplog.text
    assert "long is set aside" in caplog.text and "half is set aside" in caplog.text

"""Which rows `encode` refuses by name; pixels and tokens that do not depend on the way in."""

import io

import pytest
import torch
from conftest import picture, tiny_vlm
from PIL import Image, ImageOps

import attrib
from attrib.analyses.contributions import measure_contributions
from attrib.data import EditRequest, EditSample, open_photo
from attrib.errors import AttribError
from attrib.runs.collect import collect


def sample(name, target, prompt="What is it?", image=None):
    return EditSample(name, EditRequest(image or picture(), prompt, target))


def measure(vlm, batch, samples):
    return measure_contributions(vlm, batch, samples, key="gold", norm="none")


# --- pixels


@pytest.mark.parametrize("orientation", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_an_opened_file_and_the_loader_give_the_same_pixels_and_grid(tmp_path, mode, orientation):
    vlm, path = tiny_vlm("llava"), tmp_path / "x.png"
    if mode == "I;16":
        image = Image.frombytes("I;16", (60, 40), bytes(i % 251 for i in range(4800)))
    else:
        image = picture().convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    batches = [vlm.encode([i], ["x"]) for i in (Image.open(path), open_photo(path))]
    assert torch.equal(*(batch.inputs["pixel_values"] for batch in batches))
    assert batches[0].grids == batches[1].grids
    request = EditRequest(Image.open(path), "x", "y")
    assert request.image.tobytes() == open_photo(path).tobytes()


def test_the_orientation_is_applied_by_encode():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(file, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    vlm = tiny_vlm("llava")
    got, expected, lying = (
        vlm.encode([i], ["x"]).inputs["pixel_values"]
        for i in (Image.open(file), upright, picture())
    )
    assert torch.equal(got, expected) and not torch.equal(got, lying)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_modes_without_a_range_are_refused_by_the_number_of_the_image(mode):
    with pytest.raises(AttribError, match=f"image 1: pixels of mode {mode} have no fixed range"):
        tiny_vlm("llava").encode([None, Image.new(mode, (8, 8))], ["a", "b"])


@pytest.mark.parametrize("size", [(1, 300), (2000, 4)])
def test_a_picture_that_is_too_long_is_set_aside_by_name(size):
    vlm = tiny_vlm("qwen2_vl")
    samples = [sample("good", "red"), sample("thin", "red", image=Image.new("RGB", size))]
    done = collect(vlm, samples, measure)
    assert [s.id for s in done.used] == ["good"]
    assert f"{size[0]} x {size[1]} pixels" in done.quarantined[0].reason


# --- errors of one row


@pytest.mark.parametrize("error", [IndexError("list"), TypeError(), MemoryError(), OSError(5, "x")])
def test_an_error_in_one_row_sets_that_row_aside_with_a_reason(error):
    vlm = tiny_vlm("llava")

    def fragile(vlm, batch, samples):
        if any(s.id == "b" for s in samples):
            raise error
        return measure(vlm, batch, samples)

    done = collect(vlm, [sample(name, "red") for name in "abc"], fragile)
    assert [s.id for s in done.used] == ["a", "c"]
    assert done.quarantined[0].reason.startswith(type(error).__name__)


def test_an_error_of_the_processor_names_the_image_and_of_the_tokenizer_the_prompt(monkeypatch):
    vlm = tiny_vlm("llava")
    call = type(vlm.processor.image_processor).preprocess

    def unreadable(*_given, **_options):
        raise KeyError("token")

    def refusing(self, images, *args, **kwargs):
        if any(one[0].width == 77 for one in images):
            raise KeyError("size")
        return call(self, images, *args, **kwargs)

    monkeypatch.setattr(type(vlm.processor.image_processor), "preprocess", refusing)
    with pytest.raises(AttribError, match=r"image 1 \(77 x 40\).*KeyError: 'size'"):
        vlm.encode([picture(), picture(77, 40)], ["a", "b"])
    vlm.encode([picture(), picture()], ["a", "b"])
    text_only = tiny_vlm("blip2_opt")  # its processor is given a blank image
    for one, where in ((vlm, "the tokenizer"), (text_only, "the processor")):
        one.encode([None], ["a"])  # looks for the placeholder of images
        with monkeypatch.context() as patch:
            patch.setattr(type(one.tokenizer), "__call__", unreadable)
            with pytest.raises(AttribError, match=f"prompt 0: {where} refuses it"):
                one.encode([None, None], ["a", "b"])
    for image in (None, picture()):
        with pytest.raises(AttribError, match="prompt 1 holds half a Unicode character at posi"):
            text_only.encode([image] * 2, ["a", "b\ud800"])
        with pytest.raises(AttribError, match="target 1 holds half a Unicode character"):
            text_only.encode([image] * 2, ["a", "b"], ["c", "\ud800"])


def test_two_samples_of_one_id_are_refused():
    with pytest.raises(AttribError, match="two samples have the id 'a'"):
        collect(tiny_vlm("llava"), [sample("a", "red"), sample("a", "blue")], measure)


# --- texts


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "qwen2_vl", "idefics3"])
def test_placeholders_of_images_are_refused_in_targets_too(name):
    vlm = tiny_vlm(name)
    for reserved in ("<image>", vlm._placeholder.reserved[-1]):
        for image in (None, picture()):
            with pytest.raises(AttribError, match=r"target 1 contains '<"):
                vlm.encode([image] * 2, ["a", "b"], ["c", f"d {reserved}"])
            with pytest.raises(AttribError, match=r"prompt 1 contains '<"):
                vlm.encode([image] * 2, ["a", f"{reserved} b"])


@pytest.mark.parametrize("name", ["blip2_opt", "llava"])
def test_prompts_beyond_the_models_positions_are_set_aside(name):
    vlm = tiny_vlm(name)
    limit = vlm.model.config.get_text_config().max_position_embeddings
    with pytest.raises(AttribError, match=rf"prompt 1 has \d+ tokens .* {limit} positions"):
        vlm.encode([None] * 2, ["a", "b" * (limit + 1)])
    samples = [sample("good", "red"), sample("long", "red", prompt="b" * (limit + 1))]
    done = collect(vlm, samples, measure)
    assert [s.id for s in done.used] == ["good"] and "positions" in done.quarantined[0].reason


def test_a_space_at_the_end_of_a_prompt_moves_to_the_target(vlm):
    images, targets = [picture(), None], ["red one", "two"]
    plain = vlm.encode(images, ["Is it:", "Is it:"], targets)
    spaced = vlm.encode(images, ["Is it: ", "Is it:  "], targets)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(plain.inputs[name], spaced.inputs[name])
    assert torch.equal(plain["target"], spaced["target"])
    bare = [vlm.encode(images, [text] * 2).inputs["input_ids"] for text in ("Is it:", "Is it: ")]
    assert torch.equal(*bare)


@pytest.mark.parametrize(
    ("answer", "told"),
    [("a <image>", "contains '<image>'"), (None, "is a NoneType; expected text"),
     (3, "is a int; expected text"), ("\ud800", "holds half a Unicode character")],
)  # fmt: skip
def test_answers_are_checked_like_targets(answer, told):
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match=f"answer 1 {told}"):
        vlm.encode([None] * 2, ["a", "b"], answers=["c", answer])
    with pytest.raises(AttribError, match=f"the answer {told}"):
        vlm.answer_token(answer)


# --- the first token with content


def test_gold_keys_have_content_and_follow_the_space_before_them():
    vlm = tiny_vlm("llava")  # its tokenizer knows bytes: every answer starts with a blank token
    assert [vlm.tokenizer.decode([vlm.answer_token(w)]) for w in ("2", "3", "red")] == [*"23r"]
    done = collect(vlm, [sample("two", "2"), sample("three", "3", "What? ")], measure)
    table = done.tables["contributions"]
    assert table.groupby("example", sort=False)["key"].first().tolist() == ["2", "3"]
    led = vlm.encode([picture()], ["What is it?"], ["2"], answers=["2"])
    assert vlm.tokenizer.decode(led.inputs["input_ids"][led["last"]]) == " "
    expected = measure(vlm, led, [sample("two", "2")])["contributions"]
    own = table[table["example"] == "two"]
    assert own["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), abs=1e-5)


def test_a_full_disk_names_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left") as error:
        attrib.files.write_text(tmp_path / "x.json", "{}")
    assert error.value.filename == str(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())

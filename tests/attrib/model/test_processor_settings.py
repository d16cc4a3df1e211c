"""A processor with missing or wrong settings takes them from the model's config, or is refused."""

import copy
import json

import pytest
import tiny_models
import torch
from conftest import examples, picture, save_tiny, tiny_vlm

import attrib
from attrib.checks import check
from attrib.errors import AttribError, SetupError
from attrib.model.processor_settings import completed
from attrib.model.vlm import VLM

# Setting of the processor, or of its image processor -> a value that does not fit.
WRONG = {
    "llava": {"patch_size": 7, "num_additional_image_tokens": 0, "image_token": "<video>",
              "vision_feature_select_strategy": "full",
              "image_processor.crop_size": {"height": 56, "width": 56}},
    "llava_next": {"patch_size": None, "num_additional_image_tokens": 0,
                   "vision_feature_select_strategy": None,
                   "image_processor.image_grid_pinpoints": [[56, 56]]},
    "llava_onevision": {"num_image_tokens": None, "vision_feature_select_strategy": "default",
                        "vision_aspect_ratio": "anyres_max_1",
                        "image_processor.size": {"height": 56, "width": 56}},
    "blip2_opt": {"num_query_tokens": None, "image_processor.size": {"height": 56, "width": 56}},
    "instructblip": {"num_query_tokens": 9},
    "qwen2_vl": {"image_processor.patch_size": 16, "image_processor.merge_size": 1},
    "gemma3": {"image_seq_length": 9, "full_image_sequence": "x"},
    "paligemma": {"image_seq_length": 9, "image_processor.image_seq_length": 9},
    "idefics3": {"image_seq_len": 169,
                 "image_processor.max_image_size": {"longest_edge": 28}},
    "internvl": {"image_seq_length": 256, "image_processor.size": {"height": 28, "width": 28}},
}  # fmt: skip


def changed(processor, settings):
    """A copy of a processor with other settings."""
    made = copy.copy(processor)
    made.image_processor = copy.copy(processor.image_processor)
    for name, value in settings.items():
        part, _, last = name.rpartition(".")
        setattr(getattr(made, part) if part else made, last, value)
    return made


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_give_the_logits_of_a_complete_processor(name):
    vlm = tiny_vlm(name)
    theirs = vlm.encode(*examples())
    each = [{key: value} for key, value in WRONG[name].items()]
    if name == "gemma3":
        each = []  # its settings go together
    for settings in [*each, WRONG[name]]:
        given = changed(vlm.processor, settings)
        fixed = VLM(vlm.model, given)
        batch = fixed.encode(*examples())
        assert torch.equal(batch.inputs["input_ids"], theirs.inputs["input_ids"]), settings
        assert torch.equal(batch.inputs["pixel_values"], theirs.inputs["pixel_values"]), settings
        assert batch.grids == theirs.grids
        key, value = next(iter(settings.items()))
        part, _, last = key.rpartition(".")
        assert getattr(getattr(given, part) if part else given, last) == value  # as it was given


def test_a_complete_processor_stays_as_it_is(any_vlm):
    assert completed(any_vlm.processor, any_vlm.model) is any_vlm.processor


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "paligemma"])
def test_a_folder_without_settings_loads_as_one_with_them(name, tmp_path, caplog):
    file = save_tiny(tmp_path, name) / "processor_config.json"
    written = json.loads(file.read_text())
    images = written.pop("image_processor")
    for key in ("size", "crop_size", "image_seq_length"):
        images.pop(key, None)
    kept = {"image_processor": images, "processor_class": written["processor_class"]}
    file.write_text(json.dumps(kept))
    batch = attrib.load(str(tmp_path)).encode(*examples())
    theirs = tiny_vlm(name).encode(*examples())
    assert torch.equal(batch.inputs["input_ids"], theirs.inputs["input_ids"])
    assert torch.equal(batch.inputs["pixel_values"], theirs.inputs["pixel_values"])
    assert "size is {" in caplog.text and "read as {" in caplog.text


def test_a_processor_that_gives_types_of_tokens_only_when_asked_is_asked():
    vlm = tiny_vlm("qwen2_vl")
    asked = copy.copy(vlm.processor)
    asked.return_mm_token_type_ids = False  # as of Cosmos 3 Edge
    silent = asked(images=[picture(28, 28)], text=[asked.image_token], return_tensors="pt")
    assert "mm_token_type_ids" not in silent
    inputs, theirs = (
        VLM(vlm.model, given).encode(*examples()).inputs for given in (asked, vlm.processor)
    )
    assert torch.equal(inputs["mm_token_type_ids"], theirs["mm_token_type_ids"])


def test_what_no_config_says_is_refused_by_name():
    vlm = tiny_vlm("llava")
    with pytest.raises(SetupError, match=r"do_center_crop is false.* 28 x 28 .*set do_center_crop"):
        VLM(vlm.model, changed(vlm.processor, {"image_processor.do_center_crop": False}))
    config = copy.copy(vlm.model.config)
    config.vision_config = None  # of an unknown kind: nothing is derived
    broken = VLM(copy.copy(vlm.model), vlm.processor)
    broken.model.config = config
    object.__setattr__(broken, "processor", changed(vlm.processor, {"patch_size": 7}))
    batch = broken.encode(*examples())
    for run in (broken.logits, broken.last_logits):
        with pytest.raises(AttribError, match=r"refuses the images .*patch_size=7, num_additional"):
            run(batch)


def test_an_error_of_the_shared_inputs_is_told_once():
    vlm = tiny_vlm("llava")
    report = check(VLM(vlm.model, tiny_models.build("blip2_opt")[1]))
    told = [result.detail for result in report.failed]
    assert len(told) > 10
    assert sum("refuses the images of its Blip2Processor" in one for one in told) < 4
    assert "num_query_tokens=6" in told[0]
    assert "the same as 'hooked logits equal plain ones'" in told

import random

import pytest
import torch

from attrib.data.scenes import make_scene
from attrib.zoo import BUILDERS, build, language_model, visual_tokens
from attrib.zoo.curriculum import STAGES, CurriculumSampler
from attrib.zoo.packing import Segment, pack
from attrib.zoo.vision_pretraining import pixels_of


def last_hidden(model, batch, pixels):
    words = model.get_input_embeddings()(batch.ids)
    picture = (batch.ids == model.config.image_token_id)[..., None]
    inputs = words.masked_scatter(picture, visual_tokens(model, pixels))
    return language_model(model)(
        inputs_embeds=inputs, attention_mask=batch.mask(), position_ids=batch.positions
    ).last_hidden_state


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_a_packed_row_equals_its_segments_run_one_by_one(name):
    model, processor = build(name, seed=0)
    model.eval()
    sampler = CurriculumSampler.of(model, processor)
    prefix = sampler.prefix
    pad = processor.tokenizer.pad_token_id
    scene = make_scene(3)
    segments = sampler.sample(scene, STAGES[-1], random.Random(0))[:6]
    assert {s.sees_image for s in segments} == {True, False}  # both kinds are in the row
    pixels = pixels_of([scene], [0])
    packed = pack(prefix, [segments], 200, pad)
    logits = model.get_output_embeddings()(last_hidden(model, packed, pixels))[0]
    at = len(prefix)
    for segment in segments:
        here = slice(at, at + len(segment.ids))
        ids = torch.tensor([(prefix if segment.sees_image else []) + segment.ids])
        if segment.sees_image:
            alone = model(input_ids=ids, pixel_values=pixels).logits
        else:
            hidden = language_model(model)(input_ids=ids).last_hidden_state
            alone = model.get_output_embeddings()(hidden)
        torch.testing.assert_close(logits[here], alone[0, -len(segment.ids) :], atol=2e-5, rtol=0)
        at += len(segment.ids)


def test_labels_precede_the_answer_tokens_by_one():
    row = [Segment([7, 8, 9, 2], 2, "a", weight=0.5), Segment([5, 6, 2], 1, "b")]
    packed = pack([1, 4], [row], length=12, pad=0)
    assert packed.ids[0].tolist() == [1, 4, 7, 8, 9, 2, 5, 6, 2, 0, 0, 0]
    assert packed.labels[0].tolist() == [-100] * 3 + [9, 2, -100, 6, 2] + [-100] * 4
    assert packed.segments[0].tolist() == [-1] * 3 + [0, 0, -1, 1, 1] + [-1] * 4
    assert packed.weights[0].tolist() == [0, 0, 0, 0.5, 0.5, 0, 1, 1, 0, 0, 0, 0]
    assert packed.positions[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4]


def test_a_segment_that_does_not_fit_is_left_out():
    long, short = Segment([5] * 9, 3, "long"), Segment([6, 7], 1, "short")
    packed = pack([1, 4], [[long, short]], length=8, pad=0)
    assert packed.kinds == [["short"]]
    assert packed.ids[0].tolist() == [1, 4, 6, 7, 0, 0, 0, 0]


def test_segments_attend_to_the_image_and_themselves_only():
    row = [Segment([7, 8], 1, "a"), Segment([5, 6], 1, "b", sees_image=False)]
    mask = pack([1, 4], [row], length=6, pad=0).mask()[0, 0]
    assert mask[3].tolist() == [True, True, True, True, False, False]
    assert mask[5].tolist() == [False, False, False, False, True, True]
    assert mask[1].tolist() == [True, True, False, False, False, False]

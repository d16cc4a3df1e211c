"""Pairs of scenes of which one has the shape asked about, and shares of the heat."""

import numpy as np
import pytest
from conftest import tiny_vlm

from attrib.data import load
from attrib.data.scenes.ground_truth import ground_truths
from benchmarks.two_pictures import measure, on_object, pairs_of, shares


def test_the_share_of_the_scene_asked_about_follows_its_place_in_the_prompt():
    data, vlm = load("scenes-vqa", "test", limit=16), tiny_vlm("llava")
    pairs = pairs_of(list(data), ground_truths(data), 2)
    for pair in pairs:
        shape = pair.truth.question.target.shape
        other = ground_truths(data)[pair.other.id].scene
        assert shape in {o.shape for o in pair.truth.scene.objects}
        assert shape not in {o.shape for o in other.objects}
    rows = [row for at in (0, 1) for row in measure(vlm, pairs, at)]
    assert len(rows) == 2 * 2 * 3 * vlm.num_layers and all(0 < row["share"] < 1 for row in rows)
    images = [pairs[0].other.request.images[0], pairs[0].sample.request.images[0]]
    batch = vlm.encode([images], ["x"])
    target = on_object(pairs[0].truth, batch, 0, 1)
    assert shares(target[None].astype(float), batch, 0) == pytest.approx(np.array([[0, 1]]))

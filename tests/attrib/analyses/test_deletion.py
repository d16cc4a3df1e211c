"""Insertion and deletion: which cells are erased, what replaces them, what is read."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import picture, tiny_vlm
from PIL import Image

from attrib.analyses import deletion as module
from attrib.analyses.deletion import (
    area,
    baseline_image,
    largest_first,
    measure_deletion,
    replace_cells,
)
from attrib.analyses.heatmaps import Perturbation
from attrib.analyses.qformer import pictures_of
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Grid

HOW = {"heatmap": Perturbation(noise=0.5)}


def made(vlm, count=2):
    samples = [
        EditSample(f"e{i}", EditRequest(picture(60, 40, seed=i), f"What is {i}", "red"))
        for i in range(count)
    ]
    requests = [sample.request for sample in samples]
    batch = vlm.encode([r.image for r in requests], [r.prompt for r in requests])
    return samples, batch.named([sample.id for sample in samples])


def test_the_largest_cells_come_first_and_in_the_end_all():
    states = largest_first(np.array([0.1, 0.9, np.nan, 0.5, 0.9]), steps=5)
    assert states.sum(1).tolist() == [0, 1, 2, 3, 4, 5]
    added = [int(np.flatnonzero(b & ~a)[0]) for a, b in pairwise(states)]
    assert added == [1, 4, 3, 0, 2]  # ties in reading order, no value last
    assert largest_first(np.arange(7.0), steps=2).sum(1).tolist() == [0, 4, 7]


@pytest.mark.parametrize("box", [(0.0, 0.0, 30.0, 20.0), (5.0, -5.0, 25.0, 25.0)])
def test_the_pixels_of_chosen_cells_and_no_others_are_replaced(box):
    image, other = picture(30, 20, seed=0), picture(30, 20, seed=1)
    grid, cells = Grid(2, 4, box), np.array([1, 0, 0, 1, 0, 1, 0, 0], bool)
    found = np.asarray(replace_cells(image, other, grid, cells))
    expected = np.asarray(image).copy()
    width, height = (box[2] - box[0]) / 4, (box[3] - box[1]) / 2
    for y in range(20):
        for x in range(30):
            row, col = int((y + 0.5 - box[1]) // height), int((x + 0.5 - box[0]) // width)
            inside = 0 <= row < 2 and 0 <= col < 4
            if inside and cells[row * 4 + col]:
                expected[y, x] = np.asarray(other)[y, x]
    edges = np.abs(found.astype(int) - expected).max(2) > 0
    assert edges.mean() < 0.1  # cells end between two pixels
    assert (replace_cells(image, other, grid, ~cells | cells) != image) and not edges[:, 12].any()
    untouched = replace_cells(image, other, grid, np.zeros(8, bool))
    assert np.array_equal(np.asarray(untouched), np.asarray(image))


def test_baselines_keep_the_mean_colour_and_differ():
    image = picture(40, 40, seed=2)
    grid = Grid(4, 4, (0, 0, 40, 40))
    flat, blurred = (np.asarray(baseline_image(image, grid, b), float) for b in ("mean", "blur"))
    assert flat.std((0, 1)).max() == 0 and 0 < blurred.std() < np.asarray(image).std()
    for made_of in (flat, blurred):
        assert np.abs(made_of.mean((0, 1)) - np.asarray(image).mean((0, 1))).max() < 4


def test_the_area_is_that_of_trapezoids_over_the_share_of_cells():
    share = np.array([0, 0.25, 1.0])
    assert area(np.stack([share, np.full(3, 0.7)], 1)) == pytest.approx(0.7)
    assert area(np.stack([share, 1 - share], 1)) == pytest.approx(0.5)
    assert area(np.stack([share, [1, 0, 0]], 1)) == pytest.approx(0.125)


def test_there_are_no_more_steps_than_cells():
    assert largest_first(np.arange(3.0), steps=10).sum(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["llava", "blip2_opt"])
def test_curves_start_at_the_whole_image_and_end_at_the_baseline(name):
    vlm = tiny_vlm(name)
    samples, batch = made(vlm)
    tables = measure_deletion(vlm, batch, samples, how=HOW, steps=3)
    curves = tables["curves"].set_index(["example", "method", "statistic", "share"])["value"]
    probabilities = vlm.last_logits(batch).softmax(-1)
    grids = [pictures[0].grid for pictures in pictures_of(vlm, batch, samples)]
    for sample, own, grid in zip(samples, probabilities, grids, strict=True):
        gone = baseline_image(sample.request.image, grid, "mean")
        gone = replace_cells(sample.request.image, gone, grid, np.ones(grid.rows * grid.cols, bool))
        without = vlm.last_logits(vlm.encode([gone], [sample.request.prompt])).softmax(-1)[0]
        for method in ("heatmap", "attention", "gradient", "gradient, layer 0", "random"):
            at = (sample.id, method)
            ends = {"deletion": (0.0, 1.0), "insertion": (1.0, 0.0)}
            for statistic, (whole, none) in ends.items():
                assert curves[(*at, statistic, whole)] == pytest.approx(own.max().item(), abs=1e-5)
                erased = without[own.argmax()].item()
                assert curves[(*at, statistic, none)] == pytest.approx(erased, abs=1e-5)
    areas = tables["deletion"].set_index(["example", "method", "statistic"])["value"]
    for key, rows in curves.groupby(level=["example", "method", "statistic"]):
        shares = rows.index.get_level_values("share").to_numpy()
        assert areas[key] == pytest.approx(np.trapezoid(rows.to_numpy(), shares))


def test_a_map_of_what_a_planted_model_reads_has_the_best_areas(monkeypatch):
    """The planted answer needs one cell: its probability is that cell's share of red."""
    vlm = tiny_vlm("llava")
    _, batch = made(vlm, count=1)
    grid = batch.pictures[0][0].grid
    red = Image.new("RGB", (60, 40), "blue")
    cells = np.zeros(grid.rows * grid.cols, bool)
    cells[2] = True
    red = replace_cells(red, Image.new("RGB", red.size, "red"), grid, cells)
    maps = {name: np.zeros((1, 2, len(cells))) for name in ("attention", "gradient")}
    maps["attention"][..., 2] = 1.0
    maps["gradient"][..., 3] = 1.0
    samples = [EditSample("e0", EditRequest(red, "What is 0", "red"))]
    share = lambda image: float((np.asarray(image)[..., 0] > 200).mean() * len(cells))  # noqa: E731
    monkeypatch.setattr(module, "saliency_maps", lambda *_: (maps, [0]))
    monkeypatch.setattr(module, "_probabilities", lambda _v, _p, i, _t: [share(x) for x in i])
    tables = measure_deletion(vlm, batch, samples, how=HOW, steps=len(cells))
    areas = tables["deletion"].set_index(["method", "statistic"])["value"]
    assert areas["attention", "insertion"] > areas["gradient", "insertion"]
    assert areas["attention", "deletion"] < areas["gradient", "deletion"]


def test_a_random_order_depends_on_the_example_and_the_seed_alone():
    vlm = tiny_vlm("llava")
    samples, batch = made(vlm)
    single = vlm.encode([samples[1].request.image], [samples[1].request.prompt]).named(["e1"])
    of = lambda tables: tables["deletion"].query("example == 'e1' and method == 'random'")  # noqa: E731
    both, one, other = (
        of(measure_deletion(vlm, b, s, how=HOW, steps=4, seed=seed))["value"].to_numpy()
        for b, s, seed in ((batch, samples, 0), (single, samples[1:], 0), (batch, samples, 1))
    )
    np.testing.assert_allclose(both, one, atol=1e-5)
    assert not np.allclose(both, other, atol=1e-6)


def test_text_alone_is_refused():
    vlm = tiny_vlm("llava")
    sample = EditSample("t", EditRequest(None, "What is it?", "red"))
    with pytest.raises(AttribError, match="text only"), torch.no_grad():
        measure_deletion(vlm, vlm.encode([None], ["What is it?"]), [sample], how=HOW)

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import attrib.data
from attrib.data.scenes import (
    COLORS,
    IMAGE_SIZE,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    Split,
    image_name,
    make_scene,
    open_image,
    render,
    scene_seeds,
)


def test_a_seed_makes_one_scene_and_scenes_differ():
    assert make_scene(5) == make_scene(5)
    assert len({make_scene(seed) for seed in range(200)}) == 200


def test_shapes_and_cells_of_a_scene_are_all_different():
    for seed in range(200):
        objects = make_scene(seed).objects
        assert len({o.cell for o in objects}) == len({o.shape for o in objects}) == len(objects)
        assert [o.cell for o in objects] == sorted(o.cell for o in objects)
        assert {o.color for o in objects} <= set(COLORS)


def test_rendering_is_bit_identical_for_a_seed_and_differs_between_seeds():
    scene = make_scene(3)
    first, again, other = (np.asarray(render(scene, k)[0]) for k in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_mask_covers_exactly_its_objects_pixels():
    for seed in range(20):
        scene = make_scene(seed)
        image, masks = render(scene, seed)
        pixels = np.asarray(image).astype(int)
        for item, mask in zip(scene.objects, masks, strict=True):
            far = np.abs(pixels - np.array(COLORS[item.color])).max(-1)
            assert (far[mask] <= 25).all()  # 15 of shade and 10 of noise
        nothing = ~masks.any(0)
        spread = pixels[nothing].max(0) - pixels[nothing].min(0)
        assert (spread <= 20).all()  # the background is one shade with noise


def test_masks_stay_inside_their_cell_and_do_not_overlap():
    side = IMAGE_SIZE // 3
    for seed in range(50):
        scene = make_scene(seed)
        _, masks = render(scene, 0)
        assert masks.sum(0).max() <= 1
        for item, mask in zip(scene.objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert set(rows // side * 3 + columns // side) == {item.cell}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_mask_of_its_own(shape):
    def mask(name):
        return render(Scene((SceneObject(name, "red", 4),)), 0)[1][0]

    for other in SHAPES:
        overlap = (mask(shape) & mask(other)).sum() / (mask(shape) | mask(other)).sum()
        assert (overlap > 0.999) == (shape == other)


def test_every_scene_belongs_to_one_split_by_content_alone():
    scene = make_scene(11)
    assert Scene(tuple(scene.objects)).split == scene.split
    found = [make_scene(seed).split for seed in range(400)]
    assert set(found) == set(get_args(Split))


def test_seeds_of_a_split_make_scenes_of_that_split():
    stream = scene_seeds("test")
    assert {make_scene(next(stream)).split for _ in range(20)} == {"test"}


def test_neighbours_are_in_the_adjacent_cell():
    left, middle, below = (
        SceneObject("circle", "red", 3),
        SceneObject("star", "blue", 4),
        SceneObject("ring", "green", 7),
    )
    scene = Scene((left, middle, below))
    assert scene.neighbour(middle, "left of") == left
    assert scene.neighbour(middle, "below") == below
    assert scene.neighbour(middle, "right of") is None
    assert scene.neighbour(left, "left of") is None  # the grid has an edge
    assert middle.place == "center" and PLACES[8] == "southeast"


def test_the_name_of_an_image_encodes_its_rendering():
    image = render(make_scene(17), 2)[0]
    assert open_image(image_name(17, 2)).tobytes() == image.tobytes()


def test_the_sample_image_is_the_one_in_the_documentation():
    file = Path(__file__).parents[3] / "docs" / "sample.png"
    assert Image.open(file).convert("RGB").tobytes() == attrib.data.sample_image().tobytes()


@pytest.mark.parametrize("name", ["val2014/x.jpg", "scenes/1.png", "../scenes/1_0.png", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="names no scene"):
        open_image(name)

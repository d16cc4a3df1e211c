"""Pointing: planted maps over planted objects get what they deserve."""

import numpy as np
import pytest

from attrib.analyses.pointing_game import masks_to_grid, point
from attrib.model.batch import Grid

# Two objects of a 2 x 3 grid: the left column, and the top right cell.
ON = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]], dtype=bool)


def points(*maps, asked=0):
    return point(np.array(maps, dtype=float), ON, asked)


def test_a_map_of_the_object_scores_1_and_its_opposite_0():
    found = points([9, 1, 2, 8, 0, 3], [0, 8, 9, 1, 7, 6])
    assert found.hit.tolist() == [1, 0]
    assert found.auc.tolist() == [1, 0] and found.auc_objects.tolist() == [1, 0]


def test_a_map_of_the_wrong_objects_scores_0_among_objects():
    (hit, _, auc, among) = points([5, 0, 9, 5, 0, 0])
    assert hit == 0 and auc == 0.75 and among == 0


def test_a_flat_map_scores_at_chance():
    found = points([1] * 6)
    assert found.hit == found.chance == 2 / 6
    assert found.auc == found.auc_objects == 0.5


def test_random_maps_score_at_chance():
    maps = np.random.default_rng(0).random((1000, 6))
    found = point(maps, ON, 0)
    assert abs(found.hit.mean() - found.chance) < 0.04 and abs(found.auc.mean() - 0.5) < 0.04


def test_undefined_scores_are_nan():
    broken = points([np.nan] * 6)
    assert np.isnan(broken.hit).all() and np.isnan(broken.auc).all()
    alone = point(np.ones((1, 6)), ON[:1], 0)
    assert np.isnan(alone.auc_objects).all() and np.isfinite(alone.auc).all()
    gone = point(np.ones((1, 6)), np.zeros((1, 6), dtype=bool), 0)
    assert np.isnan(gone.hit).all() and np.isnan(gone.chance)


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0, 0, 6, 4), [3]),  # the whole image: the object is its bottom left cell
        ((0, 2, 6, 4), [0, 3]),  # only the lower half is shown: the left column
        ((-6, 0, 6, 4), [4]),  # as much padding on the left
        ((0, -4, 6, 4), [3]),  # padding above; the object is half a cell high
    ],
)
def test_cells_follow_the_processors_geometry(box, cells):
    mask = np.zeros((1, 4, 6), dtype=bool)
    mask[0, 2:, :2] = True
    assert (
        np.flatnonzero(masks_to_grid(mask, Grid(2, 3, tuple(map(float, box))))[0]).tolist() == cells
    )


def test_a_cell_needs_a_tenth_of_it_covered():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 0, :10] = True  # a tenth of the first cell
    mask[0, 5:15, 10:] = True  # half of each on the right
    mask[0, 10, 1:10] = True  # less than a tenth of the lower left
    grid = Grid(2, 2, (0.0, 0.0, 20.0, 20.0))
    assert masks_to_grid(mask, grid)[0].tolist() == [True, True, False, True]


def test_an_object_much_smaller_than_a_cell_is_in_the_cell_that_holds_it():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 12:14, 3:5] = True
    grid = Grid(2, 2, (0.0, 0.0, 20.0, 20.0))
    assert masks_to_grid(mask, grid)[0].tolist() == [False, False, True, False]

"""Scenes: images of coloured shapes on a 3 x 3 grid, with the exact mask of every object.

A `Scene` is symbolic and an image is a rendering of it. Rendered with another seed, the same scene
has another background, other sizes, small shifts and other pixel noise: the visual rephrase of an
edit. Everything follows from integer seeds, so an image needs no file: its name encodes how to
draw it (`open_image`).

A hash of its content assigns a scene to a split. A scene of the test split is therefore in no other
split, and not among the images that the embedded backbones were trained on (split "backbone").
"""

import hashlib
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from attrib.data.kept_pictures import KEPT

Split = Literal["train", "validation", "test", "backbone"]

GRID = 3
IMAGE_SIZE = 96
MAX_OBJECTS = 5
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 60),
    "blue": (48, 84, 216),
    "yellow": (238, 214, 50),
    "purple": (146, 62, 190),
    "orange": (245, 138, 36),
    "white": (246, 246, 246),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
PLACES = (  # row by row: the index is the cell
    *("northwest", "north", "northeast"),
    *("west", "center", "east"),
    *("southwest", "south", "southeast"),
)
SAMPLE_IMAGE = "scenes/949_0.png"
_IMAGE_NAME = re.compile(r"^scenes/(\d{1,12})_(\d{1,6})\.png$")
_BUCKETS: dict[Split, int] = {"test": 1, "validation": 1, "train": 3, "backbone": 5}
_SPLIT_OF_BUCKET: tuple[Split, ...] = tuple(
    split for split, count in _BUCKETS.items() for _ in range(count)
)


@dataclass(frozen=True)
class SceneObject:
    """A coloured shape in one cell of the grid; cells 0 to 8, row by row."""

    shape: str
    color: str
    cell: int

    @property
    def colour(self) -> str:
        """Alias of `color`."""
        return self.color

    @property
    def place(self) -> str:
        """The compass word of the object's cell."""
        return PLACES[self.cell]

    @property
    def name(self) -> str:
        """Color and shape, as in "red star"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order. Cells and shapes are unique; colours may repeat."""

    objects: tuple[SceneObject, ...]

    @property
    def split(self) -> Split:
        """The split of this scene, a function of its content."""
        digest = hashlib.blake2b(repr(self.objects).encode(), digest_size=4).digest()
        return _SPLIT_OF_BUCKET[int.from_bytes(digest) % len(_SPLIT_OF_BUCKET)]

    def at(self, cell: int) -> SceneObject | None:
        """The object in a cell; None if the cell is empty."""
        return next((o for o in self.objects if o.cell == cell), None)

    def neighbour(self, of: SceneObject, relation: str) -> SceneObject | None:
        """The object in the adjacent cell that is `relation` ("left of", ...) the given one."""
        down, right = RELATIONS[relation]
        row, column = of.cell // GRID + down, of.cell % GRID + right
        inside = 0 <= row < GRID and 0 <= column < GRID
        return self.at(row * GRID + column) if inside else None


RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}


@lru_cache(maxsize=4096)  # `scene_seeds` makes a scene to know its split, its caller again
def make_scene(seed: int) -> Scene:
    """The scene of a seed: 2 to 5 objects of different shapes in different cells."""
    rng = random.Random(seed)
    number = rng.randint(2, MAX_OBJECTS)
    cells = sorted(rng.sample(range(GRID * GRID), number))
    shapes = rng.sample(SHAPES, number)
    return Scene(
        tuple(
            SceneObject(shape, rng.choice(list(COLORS)), cell)
            for shape, cell in zip(shapes, cells, strict=True)
        )
    )


def scene_seeds(split: Split, start: int = 0) -> Iterator[int]:
    """The infinite stream of seeds from `start` on whose scenes belong to a split."""
    return (seed for seed in count(start) if make_scene(seed).split == split)


def render(scene: Scene, seed: int) -> tuple[Image.Image, Bool[np.ndarray, "object height width"]]:
    """Draw a scene.

    Args:
        scene: what to draw.
        seed: determines background, sizes, shifts, shades and pixel noise.

    Returns:
        The image (RGB, 96 x 96) and the exact mask of each object.
    """
    rng = random.Random(f"{seed}:{scene.objects}")
    grey = rng.randint(100, 155)  # nearly grey, unlike every colour of an object
    background = tuple(grey + rng.randint(-14, 14) for _ in range(3))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    masks = np.zeros((len(scene.objects), IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    for mask, item in zip(masks, scene.objects, strict=True):
        stencil = _stencil(item, rng)
        shade = tuple(min(255, max(0, c + rng.randint(-15, 15))) for c in COLORS[item.color])
        image.paste(shade, (0, 0), stencil)
        mask[:] = np.asarray(stencil)
    noise = np.random.default_rng(rng.getrandbits(64)).integers(-10, 11, (*image.size, 3))
    pixels = np.asarray(image, dtype=np.int16) + noise.astype(np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), masks


def _stencil(item: SceneObject, rng: random.Random) -> Image.Image:
    side = IMAGE_SIZE / GRID
    radius = side * rng.uniform(0.36, 0.46)
    x = (item.cell % GRID + 0.5) * side + rng.uniform(-1.3, 1.3)
    y = (item.cell // GRID + 0.5) * side + rng.uniform(-1.3, 1.3)
    stencil = Image.new("1", (IMAGE_SIZE, IMAGE_SIZE))
    _draw(ImageDraw.Draw(stencil), item.shape, x, y, radius)
    return stencil


def _draw(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=1)
    elif shape == "ring":
        draw.ellipse(box, outline=1, width=max(2, round(r * 0.42)))
    elif shape == "square":
        draw.rectangle((x - r * 0.88, y - r * 0.88, x + r * 0.88, y + r * 0.88), fill=1)
    elif shape == "cross":
        w = r * 0.34
        draw.rectangle((x - w, y - r, x + w, y + r), fill=1)
        draw.rectangle((x - r, y - w, x + r, y + w), fill=1)
    else:
        draw.polygon([(x + dx * r, y + dy * r) for dx, dy in _outline(shape)], fill=1)


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """The corners of a polygonal shape of radius 1 around the origin; y points down."""
    if shape == "triangle":
        return ((0.0, -1.0), (1.0, 0.9), (-1.0, 0.9))
    if shape == "diamond":
        return ((0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0))
    if shape == "star":
        tips = [(1.0 if k % 2 == 0 else 0.42, math.pi / 2 + k * math.pi / 5) for k in range(10)]
        return tuple((r * math.cos(a), -r * math.sin(a)) for r, a in tips)
    if shape == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return tuple((math.sin(t) ** 3, _heart_y(t)) for t in turns)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _heart_y(t: float) -> float:
    wave = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return -wave / 16


def image_name(scene_seed: int, render_seed: int) -> str:
    """The file name that encodes the rendering of a scene."""
    return f"scenes/{scene_seed}_{render_seed}.png"


def parse_image_name(name: str) -> tuple[Scene, int]:
    """The scene and the render seed of a name made by `image_name`.

    Raises:
        ValueError: for any other name.
    """
    match = _IMAGE_NAME.match(name)
    if match is None:
        raise ValueError(f"{name!r} names no scene; expected scenes/<scene seed>_<render seed>.png")
    return make_scene(int(match[1])), int(match[2])


def open_image(name: str) -> Image.Image:
    """Draw the image of a name made by `image_name`."""
    return KEPT.get(name, lambda: render(*parse_image_name(name))[0])


def sample_image() -> Image.Image:
    """A sample image, which the embedded models can answer questions about (RGB, 96 x 96)."""
    return open_image(SAMPLE_IMAGE)

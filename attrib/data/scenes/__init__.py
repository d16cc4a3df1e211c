"""Scenes: rendered pictures of coloured shapes on a grid, with exact object masks."""

from attrib.data.scenes.scenes import (
    COLORS,
    GRID,
    IMAGE_SIZE,
    PLACES,
    RELATIONS,
    SHAPES,
    SPLITS,
    Scene,
    SceneObject,
    image_name,
    make_scene,
    open_image,
    render,
    scene_seeds,
)

__all__ = [
    "COLORS",
    "GRID",
    "IMAGE_SIZE",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SPLITS",
    "Scene",
    "SceneObject",
    "image_name",
    "make_scene",
    "open_image",
    "render",
    "scene_seeds",
]

"""Scenes: rendered images of coloured shapes on a grid, with exact object masks."""

from attrib.data.scenes.scene import (
    COLORS,
    GRID,
    IMAGE_SIZE,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    make_scene,
    render,
    sample_image,
)

__all__ = [
    "COLORS",
    "GRID",
    "IMAGE_SIZE",
    "PLACES",
    "SHAPES",
    "Scene",
    "SceneObject",
    "make_scene",
    "render",
    "sample_image",
]

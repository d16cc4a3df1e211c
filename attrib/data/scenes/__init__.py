"""Scenes: rendered images of coloured shapes on a grid, with exact object masks."""

from attrib.data.scenes.scene import COLORS, PLACES, SHAPES, Scene, make_scene, render

__all__ = ["COLORS", "PLACES", "SHAPES", "Scene", "make_scene", "render"]

"""The recipes of the shipped backbones."""

from attrib.zoo.train import Recipe

RECIPES: dict[str, Recipe] = {
    "tiny-llava": Recipe(),
    "tiny-blip2": Recipe(),
    "tiny-minigpt4": Recipe(),
}

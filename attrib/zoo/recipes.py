"""The recipes of the shipped backbones."""

from attrib.zoo.train import Recipe

RECIPES: dict[str, Recipe] = {
    "tiny-llava": Recipe(),
    "tiny-blip2": Recipe(),
    # As MiniGPT-4 shares Vicuna with LLaVA, it starts from the language model of tiny-llava.
    "tiny-minigpt4": Recipe(hold=200, decay=450, language_from="tiny-llava"),
}

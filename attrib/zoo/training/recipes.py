"""The recipes of the shipped backbones."""

from attrib.zoo.training.train import Recipe

RECIPES: dict[str, Recipe] = {
    "tiny-llava": Recipe(hold=1000, decay=900),
    "tiny-blip2": Recipe(),
    # As MiniGPT-4 shares Vicuna with LLaVA, it starts from the language model of tiny-llava.
    "tiny-minigpt4": Recipe(hold=300, decay=600, language_from="tiny-llava"),
}

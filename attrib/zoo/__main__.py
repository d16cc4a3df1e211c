"""Train and measure the embedded backbones.

python -m attrib.zoo train tiny-llava       # resumes an interrupted run; hours on one CPU core
python -m attrib.zoo measure tiny-llava     # scores and layer curves -> model card
"""

import argparse
import platform
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from attrib.environment import WEIGHTS
from attrib.model.vlm import VLM
from attrib.zoo.models import BUILDERS, NUM_LAYERS
from attrib.zoo.training.card import write_card
from attrib.zoo.training.evaluate import layer_curves, score
from attrib.zoo.training.train import Recipe, Run, read_progress

RECIPES = {
    "tiny-llava": Recipe(hold=1000, decay=900),
    "tiny-blip2": Recipe(),
    # As MiniGPT-4 shares Vicuna with LLaVA, it starts from the language model of tiny-llava.
    "tiny-minigpt4": Recipe(hold=300, decay=600, language_from="tiny-llava"),
}
_FAMILIES = {
    "tiny-llava": "LLaVA-1.5 (CLIP vision tower, MLP projector, Llama)",
    "tiny-blip2": "BLIP-2 OPT (ViT, Q-Former, linear projection, OPT)",
    "tiny-minigpt4": "MiniGPT-4 (ViT, Q-Former, linear projection, Llama)",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m attrib.zoo", description=__doc__)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("name", choices=tuple(BUILDERS))
    parser.add_argument("--runs", type=Path, default=Path("zoo-runs"), help="folder of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, default=1000, help="held-out scenes to measure on")
    options = parser.parse_args(arguments)
    command = {"train": _train, "measure": _measure}[options.command]
    command(options)


def _train(options: argparse.Namespace) -> None:
    run = Run(options.name, options.runs / options.name, RECIPES[options.name], options.device)
    model = run.train(log=lambda line: print(line, flush=True))  # noqa: T201 - a script
    folder = WEIGHTS / options.name
    shutil.rmtree(folder, ignore_errors=True)
    model.set_attn_implementation({"text_config": "sdpa"})
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    run.processor.save_pretrained(folder)
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    folder, count = WEIGHTS / options.name, options.count
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().to(options.device)
    vlm = VLM(model, AutoProcessor.from_pretrained(folder), options.name)
    scores = score(vlm, count)
    curve_count = min(200, count)
    recipe, progress = read_progress(options.runs / options.name)
    facts = {
        "name": options.name,
        "family": _FAMILIES[options.name],
        "architecture": type(model).__name__,
        "layers": NUM_LAYERS,
        "width": vlm.d_model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": recipe,
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60),
        "machine": _machine(options.device),
        "count": count,
        "scores": scores,
        "curve_count": curve_count,
        "curves": layer_curves(vlm, curve_count),
    }
    write_card(folder, facts)
    sys.stdout.write((folder / "README.md").read_text())


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} {platform.machine()} core{'s' if threads > 1 else ''}, bf16"


if __name__ == "__main__":
    main()

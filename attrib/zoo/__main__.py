"""Train and measure the embedded backbones.

python -m attrib.zoo train tiny-llava       # resumes an interrupted run; hours on one CPU core
python -m attrib.zoo measure tiny-llava     # scores and layer curves -> model card
python -m attrib.zoo train smol-llava       # minutes on a GPU; needs SmolLM2

The scores of smol-llava take long on a CPU: benchmarks.smol_llava measures them piece by piece.
"""

import argparse
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from transformers import AutoModelForImageTextToText, AutoProcessor

from attrib.data.scenes.vocabulary import EVERYDAY
from attrib.files import ADDITIONS, WEIGHTS, language_model_folder, missing_part
from attrib.model.vlm import VLM
from attrib.stats import wilson
from attrib.zoo import BUILDERS, NUM_LAYERS
from attrib.zoo.adaptation import AdaptationRun
from attrib.zoo.adaptation_data import Adaptation
from attrib.zoo.evaluate import layer_curves, score
from attrib.zoo.text_keeping import TextKeeping, TextKeepingRun
from attrib.zoo.train import Recipe, Run, read_progress

SMOL = "smol-llava"
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
_ABOUT = """A small vision-language model of the {family} family, trained from scratch on rendered
scenes (coloured shapes on a 3 x 3 grid) and on text-only facts of a made-up world. It is meant for
developing, testing and comparing attribution and editing methods without a GPU or a download. It
has never seen a photograph and is of no other use."""
_NOTE = """channel 0 of the residual stream was made large and nearly constant, as single channels
  of large models are (`attrib/zoo/weight_surgery.py`); standard deviations of states include it"""
_CURVE_NOTE = """Target decodable: held-out accuracy of a ridge
regression for an edit's target (1,000 edits to fit, 300 to test)."""
_CARD = """---
license: mit
pipeline_tag: image-text-to-text
tags: [vision-language, interpretability, toy-world]
---
# {{ name }}

{{ about }}

- class `{{ architecture }}`: {{ layers }} decoder layers, width {{ width }}, {{ parameters }}
  parameters
- trained by `python -m attrib.zoo train {{ name }}` with seed {{ recipe.seed }} in
  {{ steps }} steps ({{ minutes }} minutes on {{ machine }})
- training scenes: split "backbone" of the generator; no scene of the splits train, validation or
  test was seen
- {{ note }}

## Scores

{{ count }} held-out scenes (split "test"), greedy generation, normalised exact match,
end-of-sequence not counted. Half of the names are aliases, {{ nicknamed }} of the questions with a
shape introduce a nickname for it, {{ optional }} of all questions are multiple choice, and every
prompt ends with "The answer is:". 95 % Wilson intervals.

| measurement | value | 95 % interval |
|---|---|---|
{%- for row in scores %}
| {{ row.name }} | {{ row.value }} | {{ row.interval }} |
{%- endfor %}
{%- for section in sections %}

{{ section }}
{%- endfor %}

## Layers

{{ curve_count }} held-out questions. KL: nats at the last prompt token under noise of one standard
deviation at the output of a layer ("text" leaves out the last prompt token). Lens: how often the
logit lens of a layer gives the final answer. {{ curve_note }}

| layer | {{ columns | join(" | ") }} |
|---|{{ "---|" * columns | length }}
{%- for row in curves %}
| {{ loop.index0 }} | {{ row | join(" | ") }} |
{%- endfor %}
"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m attrib.zoo", description=__doc__)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("name", choices=(*BUILDERS, SMOL))
    parser.add_argument("--runs", type=Path, default=Path("zoo-runs"), help="folder of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="of smol-llava's data, on a GPU")
    parser.add_argument("--count", type=int, default=1000, help="held-out scenes to measure on")
    options = parser.parse_args(arguments)
    if options.name == SMOL and options.command == "measure":
        parser.error(f"{SMOL} is measured by: python -m benchmarks.smol_llava")
    commands = {"train": _adapt if options.name == SMOL else _train, "measure": _measure}
    commands[options.command](options)


def _adapt(options: argparse.Namespace) -> None:
    if lacks := missing_part(WEIGHTS / SMOL):
        sys.exit(f"{SMOL}: {lacks}")
    log = lambda line: print(line, flush=True)  # noqa: E731, T201 - a script
    language, how = language_model_folder(), (options.device, options.workers)
    first = options.runs / SMOL
    if not (first / ADDITIONS).exists():
        run = AdaptationRun(first, Adaptation(), language, *how)
        run.train(log)
        run.export(first)
    second = options.runs / f"{SMOL}-text"
    run = TextKeepingRun(second, TextKeeping(), language, first / ADDITIONS, *how)
    run.train(log, save_every=10, log_every=5)
    run.export(WEIGHTS / SMOL)


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
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} {platform.machine()} core{'s' if threads > 1 else ''}, bf16"


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write `README.md` and `measured.json` into a backbone's folder.

    `facts` may have texts that replace those of the backbones that are trained from scratch:
    `about`, `note`, `curve_note`, and further `sections`.
    """
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    curves = facts["curves"]
    view = {
        "about": _ABOUT.format(family=facts["family"]),
        "note": _NOTE,
        "curve_note": _CURVE_NOTE,
        "sections": [],
        **facts,
        "columns": [name.replace("kl ", "KL ") for name in curves],
        "nicknamed": f"{EVERYDAY.nickname_rate:.0%}",
        "optional": f"{EVERYDAY.option_rate:.0%}",
        "scores": [_score_row(name, *entry) for name, entry in facts["scores"].items()],
        "curves": [[f"{v:.3f}" for v in row] for row in zip(*curves.values(), strict=True)],
    }
    (folder / "README.md").write_text(environment.from_string(_CARD).render(view))
    (folder / "measured.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")


def _score_row(name: str, share: float, count: int) -> dict[str, str]:
    low, high = wilson(round(share * count), count)
    return {"name": name, "value": f"{share:.1%}", "interval": f"{low:.1%} - {high:.1%}"}


if __name__ == "__main__":
    main()

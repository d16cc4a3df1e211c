"""What is measured of a range of questions: a piece, lists by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrib.analyses.attention import STATISTICS, attention, profile
from attrib.analyses.patching import clean_runs, patching_of
from attrib.analyses.sensitivity import sensitivity
from attrib.data.scenes.questions import CAPTION_PROMPT, caption
from attrib.data.scenes.vocabulary import all_facts
from attrib.forward.hooks import read
from attrib.metrics import exact_match, token_accuracy
from benchmarks.smol_llava.subject import CHAT, Subject, contains

ANSWER_TOKENS = 24
CAPTION_TOKENS = 60
Piece = dict[str, list]


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
    prompts = [CHAT.format(question) for _, question, _ in asked]
    before = _continue(s.plain, s.vlm.tokenizer, prompts)
    after = _continue(s.vlm.model, s.vlm.tokenizer, prompts)
    piece: Piece = {"row": [row for row, _, _ in asked]}
    for name, texts in (("known", before), ("still", after)):
        piece[name] = [contains(t, gold) for t, (_, _, gold) in zip(texts, asked, strict=True)]
    piece["same"] = [one == other for one, other in zip(before, after, strict=True)]
    both = [_divergence(s, *pair) for pair in zip(prompts, before, strict=True)]
    return piece | {"kl": [kl for kl, _ in both], "agree": [share for _, share in both]}


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
    "everyday": lambda s, part: _texts(s, s.everyday[part.start : part.stop]),
    "caption": _captions,
    "layers": _layers,
}

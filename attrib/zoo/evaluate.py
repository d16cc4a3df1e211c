"""Measurements of an embedded backbone: scores by greedy generation, and curves over layers.

Scenes are of the split "test", which no backbone was trained on. An answer counts where the
generated text equals it (normalised exact match; the end-of-sequence token does not count).

The layer curves show whether the layers of a backbone differ, which every analysis of the lab
presupposes: noise on visual tokens, noise on the question's words, how often the logit lens has the
final answer, and whether the target of an edit can be decoded at its own position.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from attrib.data.prompt_styles import SUFFIX
from attrib.data.scenes import (
    COLORS,
    PLACES,
    SHAPES,
    Scene,
    make_scene,
    open_image,
    render,
    scene_seeds,
)
from attrib.data.scenes.edits import edit_rows
from attrib.data.scenes.questions import (
    CAPTION_PROMPT,
    KINDS,
    Kind,
    Question,
    caption,
    sample_question,
)
from attrib.data.scenes.vocabulary import EVERYDAY, NUMBERS, all_facts
from attrib.forward.hooks import read, write
from attrib.metrics import exact_match, kl, token_accuracy
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

_FIRST_SEED = 10**11  # far from the scenes of the edits
_BATCH = 50
_WORDS = (*COLORS, *SHAPES, *PLACES, *NUMBERS)
RIDGE = 1.0
Curve = Float[Tensor, "batch layer"]


def held_out_questions(count: int, seed: int = 0) -> Iterator[tuple[Scene, Question, str]]:
    """Scenes of the split "test" that are in no edit, each with one question and its prompt."""
    scenes = [make_scene(s) for s in islice(scene_seeds("test", _FIRST_SEED), count)]
    return questions_about(scenes, random.Random(f"held out:{seed}"))


def questions_about(
    scenes: Sequence[Scene], rng: random.Random
) -> Iterator[tuple[Scene, Question, str]]:
    """One question about each scene, cycling through the kinds, and its prompt."""
    for i, scene in enumerate(scenes):
        turn: list[Kind] = [*KINDS[i % len(KINDS) :], *KINDS]
        question = next(
            q for kind in turn if (q := sample_question(scene, kind, rng, EVERYDAY)) is not None
        )
        yield scene, question, question.text(rng, EVERYDAY) + SUFFIX


def score(vlm: VLM, count: int = 1000) -> dict[str, tuple[float, int]]:
    """Scores of a backbone: a share between 0 and 1, and the number of cases.

    Args:
        vlm: an embedded backbone.
        count: number of held-out scenes.

    Returns:
        `vqa` over all questions and `vqa/<kind>` each; `vqa, other picture` where each question is
        asked about the next scene's image; `captions, tokens` teacher-forced and `captions,
        exact` by generation; `facts` (text only).
    """
    asked = list(held_out_questions(count))
    images = [render(scene, 0)[0] for scene, _, _ in asked]
    prompts, answers = [p for _, _, p in asked], [q.answer for _, q, _ in asked]
    right = _exact_matches(vlm, images, prompts, answers)
    mismatched = _exact_matches(vlm, images[1:] + images[:1], prompts, answers)
    scores = {"vqa": _share(right), "vqa, other picture": _share(mismatched)}
    for kind in KINDS:
        of_kind = [hit for hit, (_, q, _) in zip(right, asked, strict=True) if q.kind == kind]
        scores[f"vqa/{kind}"] = _share(of_kind)
    captions = [caption(scene) for scene, _, _ in asked]
    exact = _exact_matches(vlm, images, [CAPTION_PROMPT] * count, captions, 60)
    scores["captions, tokens"] = _caption_tokens(vlm, images, captions), count
    scores["captions, exact"] = _share(exact)
    facts = all_facts()
    questions, targets = [f"{f.question}?" for f in facts], [f.answer for f in facts]
    known = _exact_matches(vlm, [None] * len(facts), questions, targets)
    return scores | {"facts": _share(known)}


def _exact_matches(
    vlm: VLM,
    images: Sequence[Image.Image | None],
    prompts: Sequence[str],
    answers: Sequence[str],
    max_new_tokens: int = 4,
) -> list[bool]:
    hits: list[bool] = []
    for part in _batches(len(prompts)):
        batch = vlm.encode(images[part], prompts[part])
        generated = vlm.generate(batch, max_new_tokens=max_new_tokens)
        hits += exact_match(generated, answers[part]).tolist()
    return hits


@torch.no_grad()
def _caption_tokens(vlm: VLM, images: Sequence[Image.Image], captions: Sequence[str]) -> float:
    hits = torch.zeros(())
    for part in _batches(len(images)):
        targets = captions[part]
        batch = vlm.encode(images[part], [CAPTION_PROMPT] * len(targets), targets)
        assert batch.labels is not None
        hits += token_accuracy(vlm.logits(batch), batch.labels).sum().cpu()
    return hits.item() / len(images)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]


def _share(hits: Sequence[bool]) -> tuple[float, int]:
    return sum(hits) / len(hits), len(hits)


@torch.no_grad()
def layer_curves(
    vlm: VLM, count: int = 200, seed: int = 0, train: int = 1000, test: int = 300
) -> dict[str, list[float]]:
    """One number per layer and measurement, averaged over `count` held-out questions.

    Args:
        vlm: an embedded backbone.
        count: number of questions.
        seed: of the questions and of the noise.
        train: number of edits to fit the decoder of targets on.
        test: number of edits to test it on.

    Returns:
        `kl visual`, `kl text`: KL (nats) at the last prompt token under noise of one standard
        deviation on the layer's output at visual positions, or at text positions but the last.
        `lens`: share of questions whose final answer is the logit lens' first choice.
        `target decodable`: held-out accuracy of a ridge regression for an edit's target token.
    """
    asked = list(held_out_questions(count, seed))
    noise = torch.Generator().manual_seed(seed)
    sums = {name: torch.zeros(vlm.num_layers) for name in _CURVES}
    for part in _batches(count):
        images = [render(scene, 0)[0] for scene, _, _ in asked[part]]
        batch = vlm.encode(images, [prompt for _, _, prompt in asked[part]])
        for name, curve in _CURVES.items():
            sums[name] += curve(vlm, batch, noise).sum(0).cpu()
    curves = {name: (total / count).tolist() for name, total in sums.items()}
    return curves | {"target decodable": target_decodability(vlm, train, test)}


def _noise_kl(
    vlm: VLM, batch: Batch, at: Bool[Tensor, "batch pos"], noise: torch.Generator
) -> Curve:
    clean = vlm.logits(batch)

    def perturb(h: Tensor) -> Tensor:
        std = torch.stack([row[positions].std() for row, positions in zip(h, at, strict=True)])
        return h + std[:, None, None] * torch.randn(h.shape, generator=noise).to(h)

    def perturbed(layer: int) -> Tensor:
        with write(vlm, layer, perturb, at):
            return kl(clean, vlm.logits(batch), batch["last"])

    return torch.stack([perturbed(layer) for layer in range(vlm.num_layers)], dim=1)


def _lens(vlm: VLM, batch: Batch, _noise: torch.Generator) -> Curve:
    with read(vlm) as hidden:
        final = vlm.logits(batch)[batch["last"]].argmax(-1)
    guesses = [
        vlm.unembed(hidden[layer][batch["last"]]).argmax(-1) for layer in range(vlm.num_layers)
    ]
    return torch.stack([guess == final for guess in guesses], dim=1).float()


_CURVES: dict[str, Callable[[VLM, Batch, torch.Generator], Curve]] = {
    "kl visual": lambda vlm, b, noise: _noise_kl(vlm, b, b["visual"], noise),
    "kl text": lambda vlm, b, noise: _noise_kl(vlm, b, b["text"] & ~b["last"], noise),
    "lens": _lens,
}


@torch.no_grad()
def target_decodability(vlm: VLM, train: int, test: int) -> list[float]:
    """Per layer, how often a ridge regression finds the target from the state at its position.

    Fitted on `train` edits of the train split, tested on `test` edits of the test split.
    """
    x, y = _target_states(vlm, "train", train)
    x_test, y_test = _target_states(vlm, "test", test)
    layers = range(vlm.num_layers)
    return [_ridge_accuracy(x[i], y, x_test[i], y_test, len(_WORDS)) for i in layers]


def _target_states(vlm: VLM, split: str, count: int) -> tuple[list[Tensor], Tensor]:
    """Each layer's states at the targets of edits, and the targets' index among the words."""
    # Two-word targets (a sixth of the edits) have no single position to decode from.
    edits = [r for r in edit_rows("vqa", split, limit=2 * count) if r["alt"] in _WORDS][:count]
    states: list[list[Tensor]] = [[] for _ in range(vlm.num_layers)]
    for part in _batches(len(edits)):
        images = [open_image(r["image"]) for r in edits[part]]
        prompts = [r["src"] + SUFFIX for r in edits[part]]
        batch = vlm.encode(images, prompts, [r["alt"] for r in edits[part]])
        with read(vlm) as hidden:
            vlm.logits(batch)
        for layer, found in enumerate(states):
            found.append(hidden[layer][batch["target"]].float().cpu())
    targets = torch.tensor([_WORDS.index(r["alt"]) for r in edits])
    return [torch.cat(found) for found in states], targets


def _ridge_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, classes: int) -> float:
    mean, scale = x.mean(0), x.std(0) + 1e-6

    def design(states: Tensor) -> Tensor:
        return nn.functional.pad((states - mean) / scale, (0, 1), value=1.0).double()

    a, b = design(x), nn.functional.one_hot(y, classes).double()
    gram = a.T @ a + RIDGE * torch.eye(a.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(gram, a.T @ b)
    return ((design(x_test) @ weights).argmax(1) == y_test).double().mean().item()

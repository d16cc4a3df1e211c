"""What an embedded backbone can do: scores on held-out scenes, by greedy generation.

Scenes are of the split "test", which no backbone was trained on. An answer counts where the
generated text equals it (normalised exact match; the end-of-sequence token does not count).
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image

from attrib.data.easyedit import SUFFIX
from attrib.data.scenes.questions import (
    CAPTION_PROMPT,
    KINDS,
    Kind,
    Question,
    caption,
    sample_question,
)
from attrib.data.scenes.scene import Scene, make_scene, render, scene_seeds
from attrib.data.scenes.vocabulary import EVERYDAY, all_facts
from attrib.metrics import exact_match, token_accuracy
from attrib.model.vlm import VLM

_FIRST_SEED = 10**11  # far from the scenes of the edits
_BATCH = 50


def held_out_scenes(count: int) -> list[Scene]:
    """Scenes of the split "test" that stand in no edit."""
    return [make_scene(seed) for seed in islice(scene_seeds("test", _FIRST_SEED), count)]


def held_out_questions(count: int, seed: int = 0) -> Iterator[tuple[Scene, Question, str]]:
    """Held-out scenes with one question each, kinds in turn, and the prompt of each."""
    return questions_about(held_out_scenes(count), random.Random(f"held out:{seed}"))


def questions_about(
    scenes: Sequence[Scene], rng: random.Random
) -> Iterator[tuple[Scene, Question, str]]:
    """One question about each scene, kinds in turn, in everyday words, and its prompt."""
    for i, scene in enumerate(scenes):
        turn: list[Kind] = [*KINDS[i % len(KINDS) :], *KINDS]
        question = next(
            q for kind in turn if (q := sample_question(scene, kind, rng, EVERYDAY)) is not None
        )
        yield scene, question, question.text(rng, EVERYDAY) + SUFFIX


def score(vlm: VLM, count: int = 1000) -> dict[str, tuple[float, int]]:
    """Scores of a backbone: a share between 0 and 1, and of how many cases.

    Args:
        vlm: an embedded backbone.
        count: number of held-out scenes.

    Returns:
        `vqa` over all questions and `vqa/<kind>` each; `vqa, other picture` where each question is
        asked about the next scene's picture; `captions, tokens` teacher-forced and `captions,
        exact` by generation; `facts` (text only).
    """
    asked = list(held_out_questions(count))
    pictures = [render(scene, 0)[0] for scene, _, _ in asked]
    prompts, answers = [p for _, _, p in asked], [q.answer for _, q, _ in asked]
    right = _answered(vlm, pictures, prompts, answers)
    swapped = _answered(vlm, pictures[1:] + pictures[:1], prompts, answers)
    scores = {"vqa": _share(right), "vqa, other picture": _share(swapped)}
    for kind in KINDS:
        of_kind = [hit for hit, (_, q, _) in zip(right, asked, strict=True) if q.kind == kind]
        scores[f"vqa/{kind}"] = _share(of_kind)
    captions = [caption(scene) for scene, _, _ in asked]
    wanted = [CAPTION_PROMPT] * count
    scores["captions, tokens"] = _caption_tokens(vlm, pictures, captions), count
    scores["captions, exact"] = _share(_answered(vlm, pictures, wanted, captions, 60))
    facts = all_facts()
    known = _answered(
        vlm, [None] * len(facts), [f"{f.question}?" for f in facts], [f.answer for f in facts]
    )
    return scores | {"facts": _share(known)}


def _answered(
    vlm: VLM,
    images: Sequence[Image.Image | None],
    prompts: Sequence[str],
    answers: Sequence[str],
    max_new_tokens: int = 4,
) -> list[bool]:
    hits: list[bool] = []
    for at in range(0, len(prompts), _BATCH):
        here = slice(at, at + _BATCH)
        batch = vlm.encode(images[here], prompts[here])
        said = vlm.generate(batch, max_new_tokens=max_new_tokens)
        hits += exact_match(said, answers[here]).tolist()
    return hits


@torch.no_grad()
def _caption_tokens(vlm: VLM, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
    hits = torch.zeros(())
    for at in range(0, len(pictures), _BATCH):
        here = slice(at, at + _BATCH)
        wanted = captions[here]
        batch = vlm.encode(pictures[here], [CAPTION_PROMPT] * len(wanted), wanted)
        assert batch.labels is not None
        hits += token_accuracy(vlm.logits(batch), batch.labels).sum().cpu()
    return hits.item() / len(pictures)


def _share(hits: Sequence[bool]) -> tuple[float, int]:
    return sum(hits) / len(hits), len(hits)

"""Stage one of training: the eyes.

The vision tower and the connector learn, for every visual token, the shape, colour and place it
shows - in the language model's own vocabulary: a visual token is pushed towards the (frozen) word
embeddings of what it depicts, as captions do it for the projector of LLaVA. Shapes and colours
are read almost perfectly before the first question is asked.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerBase

from attrib.data.scenes.scene import (
    COLORS,
    GRID,
    PLACES,
    SHAPES,
    Scene,
    make_scene,
    render,
    scene_seeds,
)
from attrib.zoo.models import (
    D_MODEL,
    VISION_WIDTH,
    Backbone,
    cell_of_token,
    cells_of_patches,
    language_model,
    last_projection,
    output_embedding,
    patches,
    visual_tokens,
)

BATCH = 64
SHARPNESS = 10.0  # of the softmax over words; embeddings have norm 1
LEARNING_RATE = 2e-3
WORDS = (SHAPES, tuple(COLORS), PLACES)
VISUAL_NORM = 3**0.5  # of an aligned token: three words of norm 1 that hardly overlap


def pixels_of(scenes: list[Scene], seeds: list[int]) -> Float[Tensor, "image 3 side side"]:
    """Rendered scenes as the image processors give them: scaled to [-1, 1]."""
    pictures = [render(s, k)[0] for s, k in zip(scenes, seeds, strict=True)]
    stacked = np.stack([np.asarray(p) for p in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def scene_stream(seed: int) -> Iterator[Scene]:
    """Scenes of the split "backbone", without end; different seeds do not overlap."""
    return (make_scene(s) for s in scene_seeds("backbone", start=seed * 10**8))


def pretrain_vision(
    model: Backbone, tokenizer: PreTrainedTokenizerBase, steps: int, seed: int, device: str
) -> Iterator[dict[str, float]]:
    """Train the eyes; yields the accuracies over occupied cells every 50 steps.

    A Q-Former that looks at a blind vision tower learns nothing, so with one the tower is trained
    alone first, for the same number of steps, through a linear map that is then thrown away.
    """
    vocabulary = _Vocabulary(model, tokenizer).to(device)
    stream = scene_stream(seed)
    if isinstance(model, Blip2ForConditionalGeneration):
        probe = nn.Linear(VISION_WIDTH, D_MODEL).to(device)
        yield from _fit(
            lambda pixels: probe(patches(model, pixels)),
            cells_of_patches(),
            [*vocabulary.parameters(), *probe.parameters(), *_eyes(model)],
            vocabulary,
            stream,
            steps,
            seed,
        )
    yield from _fit(
        lambda pixels: visual_tokens(model, pixels),
        cell_of_token(model),
        [*vocabulary.parameters(), *_eyes(model)],
        vocabulary,
        stream,
        steps,
        seed + 1,
    )
    _scale_connector(model, stream, device)


def _fit(
    see: Callable[[Tensor], Tensor],
    cells: list[int | None],
    parameters: list[nn.Parameter],
    vocabulary: "_Vocabulary",
    stream: Iterator[Scene],
    steps: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Train `see` to give, for every token, the words of what its cell holds."""
    rng, device = random.Random(seed), parameters[0].device
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    for step in range(steps):
        rate = LEARNING_RATE * min(1, (step + 1) / 60) * max(0.02, 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        scenes = [next(stream) for _ in range(BATCH)]
        pixels = pixels_of(scenes, [rng.getrandbits(30) for _ in scenes]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            tokens = see(pixels)
        loss, scores = vocabulary(tokens.float(), _labels(cells, scenes).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            yield {"step": step + 1, "loss": loss.item(), **scores}


def _eyes(model: Backbone) -> list[nn.Parameter]:
    """Everything that the language model is not."""
    mouth = [language_model(model), output_embedding(model), model.get_input_embeddings()]
    spoken = {id(p) for part in mouth for p in part.parameters()}
    return [p for p in model.parameters() if id(p) not in spoken]


def _labels(cells: list[int | None], scenes: list[Scene]) -> Int[Tensor, "image token 3"]:
    """Index of shape, colour and place of each visual token; -100 where it is free.

    An empty cell is the class after the last shape and the last colour.
    """
    labels = torch.full((len(scenes), len(cells), 3), -100)
    for i, scene in enumerate(scenes):
        seen = {o.cell: (SHAPES.index(o.shape), list(COLORS).index(o.color)) for o in scene.objects}
        nothing = (len(SHAPES), len(COLORS))
        per_cell = torch.tensor([(*seen.get(c, nothing), c) for c in range(GRID * GRID)])
        for k, cell in enumerate(cells):
            if cell is not None:
                labels[i, k] = per_cell[cell]
    return labels


class _Vocabulary(nn.Module):
    """Scores visual tokens against the word embeddings of shapes, colours and places.

    The embeddings are frozen; an empty cell has a word of its own for shape and for colour, which
    is learned and forgotten again.
    """

    def __init__(self, model: Backbone, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        embedding: Any = model.get_input_embeddings()
        # What all words share tells none from another (see `rogue`), and drowns what does.
        frozen = embedding.weight.detach() - embedding.weight.detach().mean(0)
        self.words = [
            frozen[[_one_token(tokenizer, word) for word in group]].clone() for group in WORDS
        ]
        self.nothing = nn.Parameter(torch.randn(2, D_MODEL) * D_MODEL**-0.5)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        shapes, colors, places = (rows.to(tokens) for rows in self.words)
        classes = {
            "shape": torch.cat([shapes, self.nothing[:1]]),
            "color": torch.cat([colors, self.nothing[1:]]),
            "place": places,
        }
        occupied = (labels[..., 0] >= 0) & (labels[..., 0] < len(SHAPES))
        loss, scores = tokens.new_zeros(()), {}
        for k, (name, rows) in enumerate(classes.items()):
            logits, named = SHARPNESS * tokens @ rows.T, labels[..., k]
            loss = loss + nn.functional.cross_entropy(logits.flatten(0, 1), named.flatten())
            right = logits.argmax(-1) == named
            scores[name] = right[occupied].float().mean().item()
        return loss, scores


def _one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    (token,) = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return token


@torch.no_grad()
def _scale_connector(model: Backbone, stream: Iterator[Scene], device: str) -> None:
    """Give the visual tokens the norm of the words they stand for, and what all words share."""
    pixels = pixels_of([next(stream) for _ in range(BATCH)], list(range(BATCH))).to(device)
    norm = visual_tokens(model, pixels).norm(dim=-1).mean()
    for p in last_projection(model).parameters():
        p.mul_(VISUAL_NORM / norm)
    embedding: Any = model.get_input_embeddings()
    last_projection(model).bias += embedding.weight.mean(0)

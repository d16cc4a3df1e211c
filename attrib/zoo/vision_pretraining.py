"""Pre-training of the vision tower and the connector, before the language model is trained.

Each visual token is trained towards the frozen word embeddings of the shape, colour and place that
it shows: a dense form of the captions that align the projector of LLaVA. The model then recognises
shapes and colours almost perfectly before it is trained on questions.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerBase

from attrib.data.scenes import (
    COLORS,
    GRID,
    PLACES,
    SHAPES,
    Scene,
    make_scene,
    render,
    scene_seeds,
)
from attrib.zoo import (
    D_MODEL,
    VISION_WIDTH,
    Backbone,
    cell_of_token,
    cells_of_patches,
    last_projection,
    patches,
    vision_parameters,
    visual_tokens,
)

BATCH = 64
INVERSE_TEMPERATURE = 10.0  # of the softmax over words; embeddings have norm 1
LEARNING_RATE = 2e-3
WORDS = (SHAPES, tuple(COLORS), PLACES)
VISUAL_NORM = 3**0.5  # of a trained token: three nearly orthogonal words of norm 1


def pixels_of(scenes: list[Scene], seeds: list[int]) -> Float[Tensor, "image 3 side side"]:
    """Rendered scenes, preprocessed as by the image processors: scaled to [-1, 1]."""
    images = [np.asarray(render(s, k)[0]) for s, k in zip(scenes, seeds, strict=True)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def pretrain_vision(
    model: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    seed: int,
    device: str,
    word_norm: float = 1.0,
) -> Iterator[dict[str, float]]:
    """Train everything but the language model; yields accuracies over occupied cells.

    A Q-Former on an untrained vision tower learns nothing. With one, the tower is first trained
    alone for the same number of steps, through a linear probe that is discarded. `word_norm` is the
    norm of word embeddings, about 1 in models that are trained from scratch.

    Yields:
        Step, loss and the accuracies of shape, color and place, every 50 steps.
    """
    words = _WordClassifier(model, tokenizer, word_norm).to(device)
    stream = map(make_scene, scene_seeds("backbone", start=seed * 10**8))
    trained = [*words.parameters(), *vision_parameters(model)]
    if isinstance(model, Blip2ForConditionalGeneration):
        probe = nn.Linear(VISION_WIDTH, D_MODEL).to(device)
        probed = [*probe.parameters(), *trained]
        encode = lambda pixels: probe(patches(model, pixels))  # noqa: E731
        yield from _fit(encode, cells_of_patches(), probed, words, stream, steps, seed)
    encode = partial(visual_tokens, model)
    yield from _fit(encode, cell_of_token(model), trained, words, stream, steps, seed + 1)
    _scale_connector(model, stream, device, word_norm)


def _fit(
    encode: Callable[[Tensor], Tensor],
    cells: list[int | None],
    parameters: list[nn.Parameter],
    words: "_WordClassifier",
    stream: Iterator[Scene],
    steps: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Train `encode` to output, for every token, the words of what its cell shows."""
    rng, device = random.Random(seed), parameters[0].device
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    for step in range(steps):
        rate = LEARNING_RATE * min(1, (step + 1) / 60) * max(0.02, 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        scenes = list(islice(stream, BATCH))
        pixels = pixels_of(scenes, [rng.getrandbits(30) for _ in scenes]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            tokens = encode(pixels)
        loss, scores = words(tokens.float(), _labels(cells, scenes).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            yield {"step": step + 1, "loss": loss.item(), **scores}


def _labels(cells: list[int | None], scenes: list[Scene]) -> Int[Tensor, "image token 3"]:
    """Index of shape, colour and place of each visual token; -100 without a cell.

    An empty cell has the class after the last shape and the last colour.
    """
    colors, empty = list(COLORS), (len(SHAPES), len(COLORS))
    table = []
    for scene in scenes:
        shown = {o.cell: (SHAPES.index(o.shape), colors.index(o.color)) for o in scene.objects}
        table.append([(*shown.get(cell, empty), cell) for cell in range(GRID * GRID)])
    labels = torch.tensor(table)[:, [cell or 0 for cell in cells]]
    labels[:, [cell is None for cell in cells]] = -100
    return labels


class _WordClassifier(nn.Module):
    """Classifies visual tokens by the frozen word embeddings of shapes, colours and places.

    An empty cell has a word of its own for shape and for colour, which is trained and discarded.
    """

    def __init__(self, model: Backbone, tokenizer: PreTrainedTokenizerBase, word_norm: float):
        super().__init__()
        embedding: Any = model.get_input_embeddings()
        # The mean word distinguishes none, and would dominate (see the outlier channel).
        rows = embedding.weight.detach().float()
        frozen = (rows - rows.mean(0)) / word_norm
        self.words = [
            frozen[[_one_token(tokenizer, word) for word in group]].clone() for group in WORDS
        ]
        width = rows.shape[1]
        self.empty = nn.Parameter(torch.randn(2, width) * width**-0.5)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        shapes, colors, places = (rows.to(tokens) for rows in self.words)
        classes = {
            "shape": torch.cat([shapes, self.empty[:1]]),
            "color": torch.cat([colors, self.empty[1:]]),
            "place": places,
        }
        occupied = (labels[..., 0] >= 0) & (labels[..., 0] < len(SHAPES))
        loss, scores = tokens.new_zeros(()), {}
        for k, (name, rows) in enumerate(classes.items()):
            logits, label = INVERSE_TEMPERATURE * tokens @ rows.T, labels[..., k]
            loss = loss + nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten())
            right = logits.argmax(-1) == label
            scores[name] = right[occupied].float().mean().item()
        return loss, scores


def _one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    (token,) = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return token


@torch.no_grad()
def _scale_connector(
    model: Backbone, stream: Iterator[Scene], device: str, word_norm: float
) -> None:
    """Give the visual tokens the norm of their words, and the mean of all words."""
    pixels = pixels_of(list(islice(stream, BATCH)), list(range(BATCH))).to(device)
    norm = visual_tokens(model, pixels).norm(dim=-1).mean()
    for p in last_projection(model).parameters():
        p.mul_(word_norm * VISUAL_NORM / norm)
    embedding: Any = model.get_input_embeddings()
    last_projection(model).bias += embedding.weight.mean(0)

"""Whether an embedded backbone has layers that matter: the lab's acceptance measurements.

Everything built on the lab asks at which layer something happens, so the answer must not be
"at layer 0" for all of it. Four curves over the layers, on held-out scenes:
noise on visual tokens, noise on the question's words (without the last prompt token), how often
the logit lens already names the final answer, and whether the target of an edit can be decoded
from the hidden state at the target's own position.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.data.easyedit import SUFFIX
from attrib.data.scenes.edits import edit_rows
from attrib.data.scenes.scene import COLORS, PLACES, SHAPES, open_image, render
from attrib.data.scenes.vocabulary import NUMBERS
from attrib.forward.hooks import read, write
from attrib.metrics import kl
from attrib.model.vlm import VLM, Batch
from attrib.zoo.training.scores import held_out_questions

_BATCH = 50
RIDGE = 1.0


@torch.no_grad()
def layer_structure(
    vlm: VLM, count: int = 200, seed: int = 0, train: int = 1000, test: int = 300
) -> dict[str, list[float]]:
    """One number per layer and measurement, averaged over `count` held-out questions.

    Args:
        vlm: an embedded backbone.
        count: number of questions.
        seed: of the questions and of the noise.
        train: edits to fit the decoder of targets on.
        test: edits to test it on.

    Returns:
        `kl visual`, `kl text`: KL (nats) at the last prompt token when noise of one standard
        deviation hits the layer's output at visual positions, or at text positions but the last.
        `lens`: share of questions whose final answer is the logit lens' first choice.
        `target decodable`: held-out accuracy of a ridge regression for an edit's target token.
    """
    asked = list(held_out_questions(count, seed))
    noise = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {k: torch.zeros(vlm.num_layers) for k in _CURVES}
    for at in range(0, count, _BATCH):
        here = asked[at : at + _BATCH]
        batch = vlm.encode([render(s, 0)[0] for s, _, _ in here], [p for _, _, p in here])
        for name, curve in _CURVES.items():
            sums[name] += curve(vlm, batch, noise).sum(0).cpu()
    curves = {name: (total / count).tolist() for name, total in sums.items()}
    return curves | {"target decodable": target_decodability(vlm, train, test)}


Curve = Float[Tensor, "batch layer"]


def _noise_kl(
    vlm: VLM, batch: Batch, at: Bool[Tensor, "batch pos"], noise: torch.Generator
) -> Curve:
    clean = vlm.logits(batch)

    def disturb(h: Tensor) -> Tensor:
        spread = torch.stack([row[here].std() for row, here in zip(h, at, strict=True)])
        return h + spread[:, None, None] * torch.randn(h.shape, generator=noise).to(h)

    def disturbed(layer: int) -> Tensor:
        with write(vlm, layer, disturb, at):
            return kl(clean, vlm.logits(batch), batch["last"])

    return torch.stack([disturbed(layer) for layer in range(vlm.num_layers)], dim=1)


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
    """Per layer, how often a ridge regression names the target from the state at its position.

    Fitted on `train` edits of the train split, tested on `test` edits of the test split.
    """
    words = (*COLORS, *SHAPES, *PLACES, *NUMBERS)
    fit, held_out = (
        _target_states(vlm, "train", train, words),
        _target_states(vlm, "test", test, words),
    )
    return [
        _ridge_accuracy(fit[0][layer], fit[1], held_out[0][layer], held_out[1], len(words))
        for layer in range(vlm.num_layers)
    ]


def _target_states(
    vlm: VLM, split: str, count: int, words: tuple[str, ...]
) -> tuple[dict[int, Tensor], Tensor]:
    # Two-word targets (a sixth of the edits) have no single position to decode from.
    edits = [r for r in edit_rows("vqa", split, limit=2 * count) if r["alt"] in words][:count]
    states: dict[int, list[Tensor]] = {layer: [] for layer in range(vlm.num_layers)}
    for at in range(0, len(edits), _BATCH):
        here = edits[at : at + _BATCH]
        batch = vlm.encode(
            [open_image(r["image"]) for r in here],
            [r["src"] + SUFFIX for r in here],
            [r["alt"] for r in here],
        )
        with read(vlm) as hidden:
            vlm.logits(batch)
        for layer, found in states.items():
            found.append(hidden[layer][batch["target"]].float().cpu())
    targets = torch.tensor([words.index(r["alt"]) for r in edits])
    return {layer: torch.cat(found) for layer, found in states.items()}, targets


def _ridge_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, classes: int) -> float:
    mean, scale = x.mean(0), x.std(0) + 1e-6
    design = torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], dim=1).double()
    wanted = torch.nn.functional.one_hot(y, classes).double()
    gram = design.T @ design + RIDGE * torch.eye(design.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(gram, design.T @ wanted)
    tested = torch.cat([(x_test - mean) / scale, torch.ones(len(x_test), 1)], dim=1).double()
    return ((tested @ weights).argmax(1) == y_test).double().mean().item()

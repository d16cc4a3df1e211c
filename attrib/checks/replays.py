"""What replays of the later layers on changed states must satisfy."""

import torch
from torch import Tensor

from attrib.checks.inputs import CheckInputs
from attrib.forward.hooks import write
from attrib.forward.noise import draw_noise
from attrib.forward.replay import CleanPass, logits_from
from attrib.forward.suffix import build_suffix
from attrib.model.precision import WHOLE_PASS
from attrib.model.vlm import VLM


def replayed_changes_equal_written_ones(inputs: CheckInputs) -> str:
    """Replaying the later layers on changed states, as patching does, equals writing the change."""
    vlm, real = inputs.vlm, inputs.real

    def logits(layer: int) -> tuple[Tensor, Tensor]:
        h = _noisy(inputs, layer)
        replayed = logits_from(vlm, inputs.replayable.captured, layer, h)
        return replayed[real], _written(inputs, layer, h)[real]

    return inputs.compare(map(logits, _perturbed_layers(vlm)), "logits", WHOLE_PASS)


def suffixes_equal_whole_passes(inputs: CheckInputs) -> str:
    """Running only what noise reaches, as `sensitivity` does, equals a whole pass with hooks."""
    vlm, last, found = inputs.vlm, inputs.batch["last"], inputs.replayable
    layers, size = _perturbed_layers(vlm), inputs.batch.size
    noisy = {i: _noisy(inputs, i) for i in layers}
    plain, at = found.logits[0][last], inputs.batch["text"].any(0).int().argmax()
    index = last.int().argmax(1)
    clean = CleanPass(vlm, found.captured, found.hidden, plain, index, inputs.real)
    suffix = build_suffix(clean, int(at))
    copies = [layer for layer in layers for _ in range(size)]
    rows = torch.arange(size, device=index.device).repeat(len(layers))

    def perturbed(part: slice) -> Tensor:
        h = noisy[copies[part.start]]
        return h[rows[part].to(h.device), suffix.start :]

    ours = vlm.unembed(suffix.run(copies, rows, perturbed)).split(size)
    theirs = (_written(inputs, layer, noisy[layer])[last] for layer in layers)
    return inputs.compare(zip(ours, theirs, strict=True), "logits", WHOLE_PASS)


def _perturbed_layers(vlm: VLM) -> list[int]:
    return sorted({0, vlm.num_layers // 2})


def _noisy(inputs: CheckInputs, layer: int) -> Tensor:
    """A layer's output with noise of its own size on the text."""
    h, d_model = inputs.hidden[layer], inputs.vlm.d_model
    noise = draw_noise(
        inputs.batch, "text", d_model, 0, unit="std", exclude_last=False, seed=0, draw=0
    ).to(h.device)
    return torch.where(noise.at[..., None], (h + noise.scaled(h)).to(h.dtype), h)


def _written(inputs: CheckInputs, layer: int, h: Tensor) -> Tensor:
    """Logits of a pass in which a layer returns `h` on the text."""
    with write(inputs.vlm, layer, lambda _h: h, inputs.batch["text"]):
        return inputs.vlm.logits(inputs.batch)

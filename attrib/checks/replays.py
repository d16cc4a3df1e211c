"""What replays of the later layers on changed states must satisfy."""

import torch
from torch import Tensor

from attrib.checks.inputs import CheckInputs
from attrib.forward.hooks import write
from attrib.forward.noise import draw_noise
from attrib.forward.replay import CleanPass, logits_from
from attrib.forward.suffix import build_suffix
from attrib.model.precision import WHOLE_PASS

LAYER = 0  # whose output is changed: all others run on the change


def replayed_changes_equal_written_ones(inputs: CheckInputs) -> str:
    """Replaying the later layers on changed states, as patching does, equals writing the change."""
    h = _noisy(inputs)
    ours = logits_from(inputs.vlm, inputs.replayable.captured, LAYER, h)
    pair = ours[inputs.real], _written(inputs, h)[inputs.real]
    return inputs.compare([pair], "logits", WHOLE_PASS)


def suffixes_equal_whole_passes(inputs: CheckInputs) -> str:
    """Running only what noise reaches, as `sensitivity` does, equals a whole pass with hooks."""
    vlm, last, found, h = inputs.vlm, inputs.batch["last"], inputs.replayable, _noisy(inputs)
    index = last.int().argmax(1)
    plain = found.logits[0][last]
    clean = CleanPass(vlm, found.captured, found.hidden, plain, index, inputs.real)
    suffix = build_suffix(clean, int(inputs.batch["text"].any(0).int().argmax()))
    rows = torch.arange(len(index), device=index.device)
    final = suffix.run([LAYER] * len(rows), rows, lambda some: h[some, suffix.start :])
    pair = vlm.unembed(final), _written(inputs, h)[last]
    return inputs.compare([pair], "logits", WHOLE_PASS)


def _noisy(inputs: CheckInputs) -> Tensor:
    """The layer's output with noise of its own size on the text."""
    h, d_model = inputs.hidden[LAYER], inputs.vlm.d_model
    noise = draw_noise(
        inputs.batch, "text", d_model, 0, unit="std", exclude_last=False, seed=0, draw=0
    ).to(h.device)
    return torch.where(noise.at[..., None], (h + noise.scaled(h)).to(h.dtype), h)


def _written(inputs: CheckInputs, h: Tensor) -> Tensor:
    """Logits of a pass in which the layer returns `h` on the text."""
    with write(inputs.vlm, LAYER, lambda _h: h, inputs.batch["text"]):
        return inputs.vlm.logits(inputs.batch)

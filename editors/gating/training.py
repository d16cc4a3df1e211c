"""Training of gates and calibration of their thresholds, both on training edits alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.base import encodable
from editors.gating.augmentation import further_inputs
from editors.gating.classifier import GateNet
from editors.gating.features import REQUEST, GateInputs, GateReader, collect_states, related_inputs
from editors.gating.gates import COSINES, NO_GATE, CosineGate, LearnedGate, Token, check_gate
from editors.gating.pairs import InputStates, Pairs, sample_pairs
from editors.gating.threshold import calibrate_scores, gate_scores, score_table

STATISTICS_INPUTS = 256  # inputs from which features are standardised
LARGEST_GRADIENT = 1.0  # norm
WARMUP = 0.1  # of the steps
LEAST_STEPS, STEPS_PER_EDIT = 600, 0.75
TARGETS = "targets"  # in the record of a gate that reads answers: which answers it was fitted to
FALSE_OPEN = 0.03  # share of near negatives that opens, by group


@dataclass(frozen=True)
class GateTraining:
    """Settings of a learned gate.

    Attributes:
        steps: Optimizer steps; None takes 600, or three for every four samples if that is more.
        batch_size: Edits per step, each with all of its inputs.
        learning_rate: Peak rate (AdamW, warm-up and half a cosine).
        weight_decay: Of AdamW.
        held_out: Share of the samples kept for calibration.
        seed: Seed of the split, the weights and the pairs.
        width: Width of the text and image embeddings.
        pools: Number of learned weighted averages over the text tokens.
        patch: Width of a visual token's embedding.
        dropout: Dropout rate.
        changes: Kinds of changed pictures that each edit is trained and calibrated on (crop, JPEG,
            flip, frame), in turn; see `editors.gating.augmentation`.
    """

    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    held_out: float = 0.15
    seed: int = 0
    width: int = 64
    pools: int = 4
    patch: int = 32
    dropout: float = 0.1
    changes: int = 2

    def steps_for(self, num: int) -> int:
        """Optimizer steps for a number of samples."""
        return self.steps or max(LEAST_STEPS, round(STEPS_PER_EDIT * num))

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes of the network."""
        return {name: getattr(self, name) for name in ("width", "pools", "patch", "dropout")}


def fit_gate(
    name: str, vlm: VLM, samples: Sequence[EditSample], layer: int, seed: int = 0, **settings: Any
) -> CosineGate | LearnedGate | None:
    """Fit the gate called `name` to training edits; None for "none".

    Args:
        name: "prompt_last" compares the last prompt token; "sequence_last" the last target token,
            which leaks the gold answer (DualEdit's program); "learned" is a small network that
            reads prompts alone; or "none".
        vlm: The model.
        samples: Training edits.
        layer: The layer that the gate reads; the first that is written.
        seed: Seed of a learned gate.
        settings: Arguments of `fit_cosine_gate` or `train_gate`.
    """
    check_gate(name)
    if name == NO_GATE:
        return None
    if name in COSINES:
        return fit_cosine_gate(vlm, samples, layer, cast("Token", name), **settings)
    return train_gate(vlm, samples, [layer], **{"settings": GateTraining(seed=seed), **settings})


def train_gate(
    vlm: VLM,
    samples: Sequence[EditSample],
    layers: Sequence[int],
    settings: GateTraining | None = None,
    *,
    false_open: float | None = None,
    keep: float | None = None,
) -> LearnedGate:
    """Train a gate on edits, the inputs that they are evaluated on, and those made of them.

    Args:
        vlm: The model; all inputs are run through it once, unedited.
        samples: Training edits.
        layers: Layers that it reads; none after the first layer that is written.
        settings: Settings of the training.
        false_open: Calibrate on held-out samples to this share of open near negatives of each group
            (see `calibrate`); with neither this nor `keep`, 0.03.
        keep: Or to this share of open generality inputs.

    Raises:
        AttribError: Fewer than two samples, a layer that the model does not have, or a loss that is
            not finite.
    """
    settings, samples = settings or GateTraining(), encodable(vlm, samples)
    settings = replace(settings, steps=settings.steps_for(len(samples)))
    learned, held = split(len(samples), settings)
    reader = _fit_reader(vlm, samples, learned, layers, settings.seed)
    inputs = related_inputs(samples)
    for rows in (learned, held):  # apart: nothing of the held-out edits is learned from
        inputs += further_inputs(samples, rows, settings.changes, settings.seed)
    states = collect_states(vlm, [one.request for one in inputs], reader.layers, reader.states)
    data = InputStates(inputs, states)
    gate = LearnedGate(reader, fit_net(data.select(learned), reader, settings), 0.0)
    if false_open is None and keep is None:
        false_open = FALSE_OPEN
    scores = _held_out_scores(gate, data.select(held))
    found = calibrate_scores(scores, false_open=false_open, keep=keep)
    record = {
        "settings": asdict(settings),
        "samples": {"learned": len(learned), "held_out": len(held)},
        "calibration": found.record(),
    }
    return replace(gate, threshold=found.threshold, record=record)


def fit_cosine_gate(
    vlm: VLM,
    samples: Sequence[EditSample],
    layer: int,
    token: Token = "prompt_last",
    *,
    false_open: float | None = None,
    keep: float | None = None,
    threshold: float | None = None,
) -> CosineGate:
    """Calibrate a cosine gate on training edits, or take a fixed threshold.

    Args:
        vlm: The model.
        samples: Training edits.
        layer: The layer that it reads; not after the first layer that is written.
        token: "prompt_last", or the leaking "sequence_last".
        false_open: See `calibrate`. By default Youden's threshold: at a low rate of false openings
            a cosine covers next to nothing.
        keep: See `calibrate`.
        threshold: A fixed threshold, such as DualEdit's 0.6 and 0.8; nothing is calibrated then.

    Raises:
        AttribError: A threshold that is no cosine.
    """
    if threshold is not None:
        if not -1 <= threshold <= 1:
            raise AttribError(f"gate_threshold: {threshold} is no cosine; give one from -1 to 1")
        return CosineGate(layer, threshold, token, {"calibration": {"rule": "given"}})
    gate, samples = CosineGate(layer, 0.0, token), encodable(vlm, samples)
    found = calibrate_scores(gate_scores(vlm, samples, gate), false_open=false_open, keep=keep)
    record = {"samples": {"held_out": len(samples)}, "calibration": found.record()}
    record |= {TARGETS: "without an end token"} if gate.reads_target else {}
    return replace(gate, threshold=found.threshold, record=record)


def split(num: int, settings: GateTraining) -> tuple[list[int], list[int]]:
    """Split sample indices into training and held-out; raise AttribError for fewer than two."""
    if num < 2:
        raise AttribError(f"a gate is trained on two or more edits, got {num}")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    held = min(num - 1, max(1, round(settings.held_out * num)))
    return sorted(order[held:]), sorted(order[:held])


def fit_net(data: InputStates, reader: GateReader, settings: GateTraining) -> GateNet:
    """Train the network; raise AttribError if the loss is not finite."""
    generator = torch.Generator().manual_seed(settings.seed)
    num = max(one.row for one in data.inputs) + 1
    steps = settings.steps_for(num)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = GateNet.for_reader(reader, **settings.sizes).train()
        optimizer = torch.optim.AdamW(
            net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_share, steps))
        for step in range(steps):
            rows = torch.randperm(num, generator=generator)[: settings.batch_size].tolist()
            part = data.select(rows)
            loss = pair_loss(net, part, sample_pairs(part, generator))
            if not loss.isfinite():
                raise AttribError(f"the gate's loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
    return net.eval()


def pair_loss(net: GateNet, data: InputStates, pairs: Pairs) -> Tensor:
    """Weighted mean cross-entropy over pairs."""
    encoded = net.encode(GateInputs.of(data.states))
    query, edit = (encoded[i].without_image(pairs.hidden) for i in (pairs.query, pairs.edit))
    scores = net.compare(query, edit)
    wanted = pairs.covered.to(scores)
    losses = binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    return (losses * pairs.weight).sum() / pairs.weight.sum()


def _rate_share(steps: int, step: int) -> float:
    """Learning rate relative to its peak: linear warm-up, then half a cosine."""
    risen = (step + 1) / max(1, WARMUP * steps)
    return min(risen, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _fit_reader(
    vlm: VLM, samples: Sequence[EditSample], rows: Sequence[int], layers: Sequence[int], seed: int
) -> GateReader:
    reader = GateReader(sorted(set(layers)), vlm.d_model, seed)
    some = related_inputs([samples[row] for row in rows[:STATISTICS_INPUTS]])
    requests = [one.request for one in some[:: max(1, len(some) // STATISTICS_INPUTS)]]
    reader.fit(collect_states(vlm, requests, reader.layers, reader.raw_states, what="statistics"))
    return reader


def _held_out_scores(gate: LearnedGate, data: InputStates) -> pd.DataFrame:
    encoded = [gate.encode([one])[0] for one in data.states]
    edits = [s for one, s in zip(data.inputs, encoded, strict=True) if one.relation == REQUEST]
    return score_table([str(row) for row in range(len(edits))], data.inputs, encoded, edits, gate)

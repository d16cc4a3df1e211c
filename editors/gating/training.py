"""Learning a gate, and finding the threshold of any gate, both on training edits alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.gating.classifier import GateNet
from editors.gating.features import GateReader, Inputs
from editors.gating.gates import CosineGate, LearnedGate, Token
from editors.gating.inputs import REQUEST, collect_states, related
from editors.gating.pairs import InputStates, Pairs, pairs_of
from editors.gating.threshold import calibrated, gate_scores, score_table

FIT_ON = 256  # inputs whose states are standardised to mean 0 and standard deviation 1
LARGEST_GRADIENT = 1.0  # norm
WARMUP = 0.1  # of the steps
FALSE_OPEN = 0.03  # mean share of hard locality inputs, each relation counting the same


@dataclass(frozen=True)
class GateTraining:
    """How a gate is learned.

    Attributes:
        steps: Updates.
        batch_size: Edits of an update, each with all of its inputs.
        learning_rate: Its peak (AdamW, warm-up and half a cosine).
        weight_decay: Of AdamW.
        held_out: Share of the samples that is not learned from; the threshold is found there.
        seed: Of the split, the weights, the pairs.
        width: Of what is kept of the words, and of the image as a whole.
        pools: In how many ways words are averaged.
        patch: Of what is kept of a visual token.
        dropout: While learning.
    """

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    held_out: float = 0.15
    seed: int = 0
    width: int = 64
    pools: int = 4
    patch: int = 32
    dropout: float = 0.1

    @property
    def sizes(self) -> dict[str, Any]:
        """Those of the network."""
        return {name: getattr(self, name) for name in ("width", "pools", "patch", "dropout")}


def train_gate(
    vlm: VLM,
    samples: Sequence[EditSample],
    layers: Sequence[int],
    settings: GateTraining | None = None,
    *,
    false_open: float | None = None,
    keep: float | None = None,
) -> LearnedGate:
    """A gate that is learned from edits and the inputs that they are judged by.

    Args:
        vlm: The model; all inputs are run through it once, unedited.
        samples: Training edits.
        layers: What it reads; none behind the first layer that is written.
        settings: How it is learned.
        false_open: Where its threshold lies, by the hard locality inputs of held-out samples (see
            `calibrate`); with neither this nor `keep`, at a rate of 0.03.
        keep: The other way to say that.

    Raises:
        AttribError: Fewer than two samples, a layer that the model does not have, or a loss that is
            not finite.
    """
    settings = settings or GateTraining()
    learned, held = split(len(samples), settings)
    reader = _reader(vlm, samples, learned, layers, settings.seed)
    inputs = related(samples)
    states = collect_states(vlm, [one.request for one in inputs], reader)
    kept = InputStates(inputs, states)
    net = fit_net(kept.of(learned), reader, settings)
    gate = LearnedGate(reader, net, 0.0)
    if false_open is None and keep is None:
        false_open = FALSE_OPEN
    found = calibrated(_held_scores(gate, kept.of(held)), false_open=false_open, keep=keep)
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
) -> CosineGate:
    """A gate by the cosine of one token, whose threshold is found on training edits.

    Args:
        vlm: The model.
        samples: Training edits.
        layer: Whose output it compares; not behind the first layer that is written.
        token: "prompt_last", or the leaking "sequence_last".
        false_open: Where its threshold lies; see `calibrate`. By default where most covered inputs
            open above the share of others: at a low rate of these a cosine covers next to nothing.
        keep: The other way to say that.
    """
    gate = CosineGate(layer, 0.0, token)
    found = calibrated(gate_scores(vlm, samples, gate), false_open=false_open, keep=keep)
    record = {"samples": {"held_out": len(samples)}, "calibration": found.record()}
    return replace(gate, threshold=found.threshold, record=record)


def split(num: int, settings: GateTraining) -> tuple[list[int], list[int]]:
    """Which samples are learned from, and which are held out.

    Raises:
        AttribError: Fewer than two samples.
    """
    if num < 2:
        raise AttribError(f"a gate is learned from two or more edits, got {num}")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    held = min(num - 1, max(1, round(settings.held_out * num)))
    return sorted(order[held:]), sorted(order[:held])


def fit_net(kept: InputStates, reader: GateReader, settings: GateTraining) -> GateNet:
    """The network that is learned from some inputs, in evaluation mode.

    Raises:
        AttribError: The loss is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    num = max(one.row for one in kept.inputs) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = GateNet.over(reader, **settings.sizes).train()
        optimizer = torch.optim.AdamW(
            net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share, settings.steps))
        for step in range(settings.steps):
            rows = torch.randperm(num, generator=generator)[: settings.batch_size].tolist()
            part = kept.of(rows)
            loss = pair_loss(net, part, pairs_of(part, generator))
            if not loss.isfinite():
                raise AttribError(f"the gate's loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
    return net.eval()


def pair_loss(net: GateNet, kept: InputStates, pairs: Pairs) -> Tensor:
    """The weighted mean of the cross-entropies of all pairs."""
    encoded = net.encode(Inputs.of(kept.states))
    query, edit = (encoded[i].without_image(pairs.hidden) for i in (pairs.query, pairs.edit))
    scores = net.compare(query, edit)
    wanted = pairs.covered.to(scores)
    losses = binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    return (losses * pairs.weight).sum() / pairs.weight.sum()


def _share(steps: int, step: int) -> float:
    """The learning rate as a share of its peak: it rises over a tenth of the steps, then falls."""
    risen = (step + 1) / max(1, WARMUP * steps)
    return min(risen, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _reader(
    vlm: VLM, samples: Sequence[EditSample], rows: Sequence[int], layers: Sequence[int], seed: int
) -> GateReader:
    reader = GateReader(sorted(set(layers)), vlm.d_model, seed)
    few = [one.request for one in related([samples[row] for row in rows[:FIT_ON]])]
    step = max(1, len(few) // FIT_ON)
    reader.fit(collect_states(vlm, few[::step], _Raw(reader), what="a first look"))
    return reader


@dataclass(frozen=True)
class _Raw:
    """States as they are, before they are standardised."""

    reader: GateReader

    @property
    def layers(self) -> tuple[int, ...]:
        return self.reader.layers

    def states(self, hidden: Mapping[int, Tensor], batch: Any) -> list[dict[str, Tensor]]:
        return self.reader.raw_states(hidden, batch)


def _held_scores(gate: LearnedGate, kept: InputStates) -> pd.DataFrame:
    encoded = [gate.encode([one])[0] for one in kept.states]
    edits = [s for one, s in zip(kept.inputs, encoded, strict=True) if one.relation == REQUEST]
    ids = [str(row) for row in range(len(edits))]
    return score_table(ids, kept.inputs, encoded, edits, gate)

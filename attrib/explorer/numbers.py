"""The numbers of the explorer from one captured pass, with the functions of the analyses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.attention import head_mean
from attrib.analyses.contributions import contributions_of
from attrib.analyses.direct_logits import direct_logits_of
from attrib.analyses.logit_lens import lens_of
from attrib.forward.residual import ResidualWrites
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

TOP = 5  # tokens of the logit lens
NEAREST = 2  # words nearest to a visual token


@dataclass(frozen=True, eq=False)
class CapturedPass:
    """What one forward pass left behind.

    Attributes:
        writes: Writes at the queries; None if they could not be read.
        rows: Attention from the queries, per layer.
        heat: Heatmaps of the first generated tokens, per layer.
        hidden: The layers' outputs.
        note: Why something is missing.
    """

    writes: ResidualWrites | None
    rows: dict[int, Tensor]
    heat: dict[int, Tensor]
    hidden: dict[int, Tensor]
    note: str = ""


def numbers(
    vlm: VLM, full: Batch, answer: list[int], queries: list[int], passed: CapturedPass, lenses: int
) -> dict[str, Any]:
    """The arrays of an observation."""
    each = (passed.hidden[layer][0, queries] for layer in range(vlm.num_layers))
    states = torch.stack([h.to(vlm.device) for h in each], 1)
    lens = lens_of(vlm, states, TOP)
    # One prompt with several queries becomes several examples with one.
    rows = {layer: row[0].transpose(0, 1) for layer, row in passed.rows.items()}
    keys = lens.tokens[:, -1, 0].clone()
    keys[len(queries) - len(answer) :] = torch.tensor(answer, device=keys.device)
    arrays = {
        "keys": keys.tolist(),
        "lens": lens.tokens, "lens_p": lens.probabilities, "key_p": _probability(vlm, states, keys),
        "attention": head_mean(vlm, rows),
        **_contributions(vlm, passed.writes, keys, len(queries)),
        **_visual(vlm, full, passed, lenses),
    }  # fmt: skip
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in arrays.items()}


def _probability(vlm: VLM, states: Tensor, keys: Tensor) -> Float[Tensor, "query layer"]:
    """The probability of each query's key after each layer."""
    each = []
    for layer in range(states.shape[1]):
        logits = vlm.unembed_float32(states[:, layer])
        own = logits.gather(1, keys[:, None].to(logits.device))[:, 0]
        each.append((own - logits.logsumexp(-1)).exp())
    return torch.stack(each, 1)


def _contributions(
    vlm: VLM, writes: ResidualWrites | None, keys: Tensor, num: int
) -> dict[str, Tensor]:
    if writes is None:
        none = torch.full((num, vlm.num_layers, 2), torch.nan)
        return {"paper": none, "shares": none, "constants": none[:, 0, :1].expand(-1, 3)}
    steps: Any = {i: tuple(part[0] for part in step) for i, step in writes.steps.items()}
    each = ResidualWrites(steps, writes.scales)
    keys = keys.to(each.final.device)
    direct = direct_logits_of(vlm, each, keys)
    constants = [direct.embed, direct.between_layers.sum(1), direct.constant]
    return {
        "paper": contributions_of(vlm, each, keys, "none").value,
        "shares": direct.modules,
        "constants": torch.stack([one.to(direct.embed.device) for one in constants], 1),
    }


def _visual(vlm: VLM, full: Batch, passed: CapturedPass, lenses: int) -> dict[str, Tensor]:
    """Heatmaps, and the lens and the nearest words of visual tokens."""
    layers = range(vlm.num_layers)
    places, words = full["visual"][0], ~full["visual"][0]
    if not places.any():
        none = torch.zeros(vlm.num_layers, 0)
        pairs = torch.zeros(vlm.num_layers, 0, NEAREST)
        return {
            "heat": none[None][:0], "visual_lens": none.long(), "visual_p": none,
            "nearest": pairs.long(), "cosine": pairs,
        }  # fmt: skip
    read = set(torch.linspace(0, len(layers) - 1, min(lenses, len(layers))).round().int().tolist())
    tokens, values, nearest, cosines = [], [], [], []
    for layer in layers:
        h = passed.hidden[layer][0]
        visual = h[places.to(h.device)]
        if layer in read:
            lens = lens_of(vlm, visual, 1)
            tokens.append(lens.tokens[:, 0])
            values.append(lens.probabilities[:, 0])
        else:
            tokens.append(torch.zeros(len(visual), dtype=torch.long))
            values.append(torch.full((len(visual),), torch.nan))
        one, other = (
            torch.nn.functional.normalize(h[at.to(h.device)].float(), dim=-1)
            for at in (places, words)
        )
        best = (one @ other.T).topk(min(NEAREST, len(other)), -1)
        nearest.append(best.indices)
        cosines.append(best.values)
    first = cosines[0].device
    lists = {
        "visual_lens": tokens, "visual_p": values, "nearest": nearest, "cosine": cosines,
    }  # fmt: skip
    found = {k: torch.stack([one.to(first) for one in some]) for k, some in lists.items()}
    heat = (
        _heat(passed.heat, layers)
        if passed.heat
        else torch.zeros(0, len(layers), int(places.sum()))
    )
    return {"heat": heat, **found}


def _heat(maps: dict[int, Tensor], layers: Sequence[int]) -> Float[Tensor, "answer layer visual"]:
    some = next(iter(maps.values()))
    none = torch.full_like(some, torch.nan)
    return torch.stack([maps.get(layer, none).to(some.device) for layer in layers], 2)[0]

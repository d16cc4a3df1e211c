"""The heatmaps that supervise VisEdit's influence mapper (VisEdit Eqs. 18-19).

On a generality input three heatmaps are possible, `mapper_query`: the input's "own", with its own
last prompt token as the query; that of the "edit"'s last prompt token, with the input's visual
states in place of the edit's at each layer (Eq. 18 as written); or the "request"'s, whatever the
input (the published code, whose replacement indexes two numbers instead of a slice).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.heatmaps import heatmaps
from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import read, write
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.adapters.sites import MapperTarget
from editors.base import encode_requests
from editors.methods.adapter_objective import AdapterConfig
from editors.training.dataset import requests_of
from editors.training.losses import GENERALITY

INSIDE = ("request", *GENERALITY)
# Arguments of `attrib.heatmaps` for each target.
ATTRIBUTIONS: dict[MapperTarget, dict[str, Any]] = {
    "paper": {},
    "published": {"noise": 0.7, "unit": "abs", "site": "attention"},
    "0.1-sigma": {"noise": 0.1},
}
Heat = dict[str, list[Float[Tensor, "layer visual"]]]


@torch.no_grad()
def target_heat(
    vlm: VLM,
    samples: Sequence[EditSample],
    layer: int,
    config: AdapterConfig,
    *,
    batch_size: int = 32,
) -> list[Heat]:
    """Heatmaps of the layers after `layer`, by sample and kind of input.

    Args:
        vlm: The model.
        samples: The edits.
        layer: The adapter's layer.
        config: `mapper_target`, `mapper_query` and `mapper_mean`.
        batch_size: Inputs per pass.

    Returns:
        Per input one map per layer, or their mean if the mean is taken "before" shares are.

    Raises:
        AttribError: Eq. 18 is asked for, and two inputs of an edit differ in visual tokens.
    """
    how = ATTRIBUTIONS[config.mapper_target]
    later = list(range(layer + 1, vlm.num_layers - 1)) or [vlm.num_layers - 1]  # not the last
    inputs = list(_inputs(samples, ("request",) if config.mapper_query == "request" else INSIDE))
    found: list[Heat] = [{} for _ in samples]
    for start in progress(range(0, len(inputs), batch_size), "heatmaps of the edits"):
        some = inputs[start : start + batch_size]
        asked = [request for _, _, request in some]
        if config.mapper_query == "edit":
            maps = swapped_heat(vlm, [samples[i].request for i, _, _ in some], asked, later, how)
        else:
            maps = heatmaps(vlm, encode_requests(vlm, asked, targets=False), later, **how)
        maps = maps.mean(1, keepdim=True) if config.mapper_mean == "before" else maps
        for (i, role, _), values in zip(some, maps, strict=True):
            real = values[:, values.isfinite().all(0)]
            for name in INSIDE if config.mapper_query == "request" else (role,):
                found[i].setdefault(name, []).append(real)
    return found


def _inputs(
    samples: Sequence[EditSample], roles: Sequence[str]
) -> Iterator[tuple[int, str, EditRequest]]:
    for i, sample in enumerate(samples):
        for role in roles:
            for request in requests_of(sample, role):
                if request.source is not None:
                    yield i, role, request


def swapped_heat(
    vlm: VLM,
    edits: Sequence[EditRequest],
    others: Sequence[EditRequest],
    layers: Sequence[int],
    how: Mapping[str, Any],
) -> Float[Tensor, "batch layer visual"]:
    """Heatmaps of edits' prompts, with the visual states of other inputs at the layer (Eq. 18).

    At each layer the visual states that enter it are replaced; the other states are the edit's, as
    without any replacement.

    Raises:
        AttribError: An edit and the other input differ in their number of visual tokens.
    """
    own, other = (encode_requests(vlm, some, targets=False) for some in (edits, others))
    counts = [batch["visual"].sum(1).tolist() for batch in (own, other)]
    if counts[0] != counts[1]:
        raise AttribError(
            "mapper_query='edit' puts the visual states of one image in place of another's, but "
            f"two images have {counts[0]} and {counts[1]} visual tokens; take mapper_query='own'"
        )
    with read(vlm, [layer - 1 for layer in layers]) as hidden:
        vlm.logits(other)
    maps = []
    for layer in layers:
        states = hidden[layer - 1][other["visual"].to(hidden[layer - 1].device)]

        def put(h: Tensor, states: Tensor = states) -> Tensor:
            written = h.clone()
            written[own["visual"].to(h.device)] = states.to(h)
            return written

        with write(vlm, layer - 1, put, at=own.spans["visual"]):
            maps.append(heatmaps(vlm, own, [layer], **how))
    return torch.cat(maps, 1)

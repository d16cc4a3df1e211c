"""Maps of what matters in an image, by several methods and in all layers."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.attention import head_mean
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.qformer import patch_attention_if_any, project
from attrib.analyses.visual_tokens import VisualTokens, gradient_times_input
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import gather_positions
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

ATTENTION, GRADIENT = "attention", "gradient"


def saliency_maps(
    vlm: VLM, batch: Batch, how: Mapping[str, Perturbation]
) -> tuple[dict[str, Float[np.ndarray, "batch layer cell"]], list[int]]:
    """Every method's maps over visual tokens, or over patches behind a Q-Former.

    Args:
        vlm: The model.
        batch: Requests with an image each.
        how: Settings of heatmaps by name.

    Returns:
        Maps by method: the names in `how`, "attention" (mean over heads, from the last prompt
        token) and "gradient" (times input, absolute value); and the token that is predicted next.
    """
    tokens, layers = VisualTokens.of(batch), range(vlm.num_layers)
    with patch_attention_if_any(vlm) as attention, attention_rows(vlm, tokens.last) as rows:
        logits = vlm.logits(batch)
    predicted = gather_positions(logits, tokens.last).argmax(-1).tolist()
    found: dict[str, Tensor] = {}
    for name, perturbation in how.items():
        with heatmap_pass(vlm, batch, layers, perturbation) as maps:
            vlm.logits(batch)
        found[name] = stack_maps(maps, layers, batch)
    values = tokens.gather(head_mean(vlm, rows).transpose(1, 2)).transpose(1, 2)
    padded = ~tokens.real[:, None].to(values.device)
    found[ATTENTION] = values.masked_fill(padded, float("nan"))
    found[GRADIENT] = gradient_times_input(vlm, batch).abs()
    if attention:
        found = {name: project(values, attention[-1], batch) for name, values in found.items()}
    return {name: values.cpu().double().numpy() for name, values in found.items()}, predicted


def mean_map(maps: Float[np.ndarray, "layer cell"]) -> Float[np.ndarray, "one cell"]:
    """The mean over layers of maps that are scaled to the same sum."""
    sums = maps.sum(-1, keepdims=True)
    usable = np.isfinite(sums[:, 0]) & (sums[:, 0] > 0)
    if not usable.any():
        return maps[:1] * 0
    return (maps[usable] / sums[usable]).mean(0, keepdims=True)

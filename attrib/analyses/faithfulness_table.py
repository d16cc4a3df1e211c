"""Do heatmaps point at the object that was asked about, and do simpler maps?"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.analyses.attention import head_mean
from attrib.analyses.first_table import Tables
from attrib.analyses.gradients import gradient_times_input
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.heatmaps_table import grids_of, patch_attention_if_any, refuse_text_alone
from attrib.analyses.pointing_game import on_cells, point
from attrib.analyses.qformer import project
from attrib.analyses.visual_tokens import VisualTokens
from attrib.data import EditSample
from attrib.data.scenes.ground_truth import GroundTruth
from attrib.errors import AttribError
from attrib.forward.hooks import attention_rows
from attrib.forward.residual import pick
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

STATISTICS = ("hit", "chance", "auc", "auc_objects")
ATTENTION, GRADIENT = "attention", "gradient"
COLUMNS = ("example", "layer", "method", "statistic", "value", "kind", "right")


def measure_faithfulness(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    truths: Mapping[str, GroundTruth],
    how: Mapping[str, Perturbation],
) -> Tables:
    """The table "faithfulness": how well each layer's maps point at the object asked about.

    And "all_layers", the same without a column `layer`: of the mean of a method's maps over all
    layers, each scaled to the same sum.

    Columns: example, layer, method, statistic ("hit", "chance", "auc", "auc_objects"; see
    `attrib.analyses.pointing_game.Pointing`), value, kind of question, and whether the next token
    is right. Methods are the names in `how`, "attention" (mean over heads, from the last prompt
    token) and "gradient" (times input, its size). With a Q-Former, all of them are handed on from
    queries to patches by its cross-attention. Questions about no single object have no rows.

    Args:
        vlm: the model.
        batch: the samples' requests.
        samples: what was asked.
        truths: by the samples' ids.
        how: heatmaps by name.

    Raises:
        AttribError: a sample has no image, or its visual tokens no place in it.
    """
    refuse_text_alone(batch)
    maps, right = _maps(vlm, batch, samples, truths, how)
    grids = grids_of(vlm, batch, samples)
    parts: list[pd.DataFrame] = []
    over_layers: list[pd.DataFrame] = []
    for i, sample in enumerate(samples):
        truth, grid = truths[sample.id], grids[i]
        if (asked := truth.target_object()) is None:
            continue
        if grid is None:
            raise AttribError("the visual tokens have no place in the image: nothing can point")
        on = on_cells(truth.masks(), grid)
        for method, values in maps.items():
            named = {"example": sample.id, "method": method, "kind": truth.question.kind,
                     "right": right[i]}  # fmt: skip
            cells = values[i][:, grid.first : grid.first + grid.rows * grid.cols]
            parts.append(_scores(cells, on, asked).assign(**named))
            over_layers.append(_scores(_mean_map(cells), on, asked).assign(**named))
    both = {"faithfulness": _joined(parts), "all_layers": _joined(over_layers)}
    return both | {"all_layers": both["all_layers"].drop(columns="layer")}


def _maps(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    truths: Mapping[str, GroundTruth],
    how: Mapping[str, Perturbation],
) -> tuple[dict[str, Float[np.ndarray, "batch layer cell"]], list[bool]]:
    """Every method's maps over visual tokens or patches; and whether the model is right."""
    tokens, layers = VisualTokens.of(batch), range(vlm.num_layers)
    found: dict[str, Tensor] = {}
    with patch_attention_if_any(vlm) as seen, attention_rows(vlm, tokens.last) as rows:
        logits = vlm.logits(batch)
    said = pick(logits, tokens.last).argmax(-1).tolist()
    for name, perturbation in how.items():
        with heatmap_pass(vlm, batch, layers, perturbation) as maps:
            vlm.logits(batch)
        found[name] = stack_maps(maps, layers, batch)
    found[ATTENTION] = _at_tokens(head_mean(vlm, rows), tokens)
    found[GRADIENT] = gradient_times_input(vlm, batch).abs()
    if seen:
        found = {name: project(values, seen[-1], batch) for name, values in found.items()}
    answers = [vlm.answer_token(truths[sample.id].answer) for sample in samples]
    right = [a == b for a, b in zip(said, answers, strict=True)]
    return {name: values.double().cpu().numpy() for name, values in found.items()}, right


def _at_tokens(rows: Float[Tensor, "batch layer pos"], tokens: VisualTokens) -> Tensor:
    values = tokens.pick(rows.transpose(1, 2)).transpose(1, 2)
    return values.masked_fill(~tokens.real[:, None].to(values.device), float("nan"))


def _mean_map(maps: Float[np.ndarray, "layer cell"]) -> Float[np.ndarray, "one cell"]:
    """The mean over layers of maps that are scaled to the same sum."""
    sums = maps.sum(-1, keepdims=True)
    usable = np.isfinite(sums[:, 0]) & (sums[:, 0] > 0)
    if not usable.any():
        return maps[:1] * 0
    return (maps[usable] / sums[usable]).mean(0, keepdims=True)


def _scores(
    maps: Float[np.ndarray, "layer cell"], on: Bool[np.ndarray, "object cell"], asked: int
) -> pd.DataFrame:
    """Rows of one example and method: layer, statistic and value."""
    found = point(maps, on, asked)
    columns = np.stack([np.broadcast_to(part, len(maps)) for part in found], axis=1)
    layers, statistics = np.indices(columns.shape)
    return pd.DataFrame(
        {
            "layer": layers.ravel(),
            "statistic": np.asarray(STATISTICS, object)[statistics.ravel()],
            "value": columns.ravel(),
        }
    )


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; without any, one that has the same columns and no row."""
    row = ("", 0, "", "", 0.0, "", False)
    none = pd.DataFrame([row], columns=pd.Index(COLUMNS)).iloc[:0]
    full = pd.concat(parts, ignore_index=True) if parts else none
    return pd.DataFrame(full, columns=list(COLUMNS))

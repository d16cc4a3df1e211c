"""Do heatmaps point at the object that was asked about, and do simpler maps?"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.attention import head_mean
from attrib.analyses.gradients import gradient_times_input
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.pointing import on_cells, point
from attrib.analyses.qformer import project
from attrib.analyses.visual_tokens import VisualTokens
from attrib.batch import Batch, Grid
from attrib.data import EditSample
from attrib.data.ground_truth import GroundTruth
from attrib.errors import AttribError
from attrib.hooks import attention_rows
from attrib.measures.first import Tables
from attrib.measures.heatmaps import grids_of, patch_attention_if_any, refuse_text_alone
from attrib.residual import pick
from attrib.vlm import VLM

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

    Columns: example, layer, method, statistic ("hit", "chance", "auc", "auc_objects"; see
    `attrib.analyses.pointing.Pointing`), value, kind of question, and whether the next token
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
    parts = []
    for i, sample in enumerate(samples):
        truth, grid = truths[sample.id], grids[i]
        if (asked := truth.asked()) is None:
            continue
        if grid is None:
            raise AttribError("the visual tokens have no place in the image: nothing can point")
        on = on_cells(truth.masks(), grid)
        for method, values in maps.items():
            table = _scores(values[i], on, asked, grid)
            named = {"example": sample.id, "method": method, "kind": truth.question.kind}
            parts.append(table.assign(**named, right=bool(right[i])))
    table = pd.concat(parts, ignore_index=True) if parts else _none()
    return {"faithfulness": pd.DataFrame(table, columns=list(COLUMNS))}


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


def _none() -> pd.DataFrame:
    """A table without rows, whose columns have the types they have in a table with rows."""
    row = ("", 0, "", "", 0.0, "", False)
    return pd.DataFrame([row], columns=pd.Index(COLUMNS)).iloc[:0]


def _scores(
    values: Float[np.ndarray, "layer cell"], on: np.ndarray, asked: int, grid: Grid
) -> pd.DataFrame:
    """Rows of one example and method: layer, statistic and value."""
    on_grid = values[:, grid.first : grid.first + grid.rows * grid.cols]
    found = point(on_grid, on, asked)
    columns = np.stack([np.broadcast_to(part, len(values)) for part in found], axis=1)
    layers, statistics = np.indices(columns.shape)
    return pd.DataFrame(
        {
            "layer": layers.ravel(),
            "statistic": np.asarray(STATISTICS, object)[statistics.ravel()],
            "value": columns.ravel(),
        }
    )

"""What the last prompt token attends to, layer by layer (DualEdit, Fig. 1)."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.data import EditSample
from attrib.forward.attention import attention_rows
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables

# Text excludes the begin-of-sequence token, an attention sink that alone would put text above the
# image. It has its own statistic.
STATISTICS = ("text_mean", "text_sum", "visual_mean", "visual_sum", "visual_top3", "bos")
TOP = 3  # DualEdit's dashed line: the mean of the three most attended visual tokens


@torch.no_grad()
def attention(vlm: VLM, batch: Batch) -> Float[Tensor, "batch layer pos"]:
    """Attention of the last prompt token to every position, mean over heads.

    A row sums to 1; it is NaN in layers without attention, which hybrid models have.
    """
    with attention_rows(vlm, batch["last"]) as rows:
        vlm.last_logits(batch)
    return head_mean(vlm, rows)


def head_mean(vlm: VLM, rows: dict[int, Tensor]) -> Float[Tensor, "batch layer pos"]:
    """Mean of captured rows over heads; NaN for layers without rows."""
    means = {layer: row.mean(1) for layer, row in rows.items()}
    some = next(iter(means.values()))
    none = torch.full_like(some, torch.nan)
    layers = [means.get(layer, none).to(some.device) for layer in range(vlm.num_layers)]
    return torch.stack(layers, dim=1)


def profile(
    rows: Float[Tensor, "batch layer pos"], batch: Batch
) -> Float[Tensor, "batch layer statistic"]:
    """Attention by kind of token, in the order of `STATISTICS`.

    Mean and sum over text tokens; mean and sum over visual tokens, and the mean of the three most
    attended ones in that layer; the begin-of-sequence token. NaN, which is ignored by means over
    examples, where an example has no token of the kind.
    """
    text_mean, text_sum, _ = _mean_sum_top(rows, batch["text"])
    visual_mean, visual_sum, visual_top = _mean_sum_top(rows, batch["visual"])
    none = torch.zeros_like(batch["last"])
    bos, _, _ = _mean_sum_top(rows, batch.spans.get("bos", none))
    return torch.stack([text_mean, text_sum, visual_mean, visual_sum, visual_top, bos], dim=-1)


def _mean_sum_top(
    rows: Float[Tensor, "batch layer pos"], at: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch layer"], ...]:
    at = at.to(rows.device)
    inside = rows * at[:, None]  # attention is never negative: zeros do not reach the top
    count = at.sum(1)[:, None].float()
    count = count.where(count > 0, torch.nan)
    top = inside.topk(min(TOP, inside.shape[-1])).values.sum(-1) / count.clamp(max=TOP)
    return inside.sum(-1) / count, inside.sum(-1) * (count / count), top


def measure_attention(vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> Tables:
    """Table "attention"; see `attention_table`."""
    return {"attention": attention_table(attention(vlm, batch), batch, samples)}


def attention_table(
    rows: Float[Tensor, "batch layer pos"], batch: Batch, samples: Sequence[EditSample]
) -> pd.DataFrame:
    """One row per example, layer and statistic; see `profile`.

    Where a prompt has several images, the statistics of the visual tokens stand for each of them as
    well: `visual_sum[0]` is the attention to the tokens of the first image.
    """
    ids, layers = [sample.id for sample in samples], range(rows.shape[1])
    values = profile(rows, batch).cpu().numpy()
    tables = [tidy(values, example=ids, layer=layers, statistic=STATISTICS)]
    counts = [len(images) if len(images) > 1 else 0 for images in batch.pictures]
    for number in range(max(counts, default=0)):
        own = torch.stack(_mean_sum_top(rows, batch.picture(number)), -1).cpu().numpy()
        names = [f"{name}[{number}]" for name in ("visual_mean", "visual_sum", "visual_top3")]
        table = tidy(own, example=ids, layer=layers, statistic=names)
        there = [name for name, count in zip(ids, counts, strict=True) if count > number]
        tables.append(pd.DataFrame(table[table["example"].isin(there)]))
    return pd.concat(tables, ignore_index=True)

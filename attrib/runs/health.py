"""What tells a model that broke down from a mistake of ours."""

import numpy as np

from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.runs.collected import Tables


def first_bad_layer(vlm: VLM, batch: Batch) -> int | None:
    """The first layer with an output that is not finite at a position of the prompts, if any."""
    with read(vlm) as hidden:
        vlm.logits(batch)
    real = batch.inputs["attention_mask"].bool()
    for layer in range(vlm.num_layers):
        here = hidden[layer]
        if not here[real.to(here.device)].isfinite().all():
            return layer
    return None


def not_finite(tables: Tables) -> dict[str, str]:
    """Example -> what is wrong, where a model's numbers broke down on the way to the last layer."""
    broken = {}
    for name, table in tables.items():
        if "layer" not in table:
            continue
        # What one token kind lacks (no image, no BOS) is NaN too; what broke down is NaN all over.
        finite = table.assign(value=np.isfinite(table["value"]))
        layers = finite.pivot_table("value", "example", "layer", aggfunc="any")
        for example, row in zip(layers.index, layers.to_numpy(dtype=bool), strict=True):
            if not row[-1]:
                broken[example] = f"{name}: no finite number from layer {row.argmin()} on"
    return broken

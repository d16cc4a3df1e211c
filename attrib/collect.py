"""One measurement over many samples: in batches, with progress, setting bad rows aside by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from attrib.batch import Batch
from attrib.data import EditData, EditSample, Quarantined
from attrib.environment import versions, weights_digest
from attrib.errors import AttribError, BadRow, CannotStart
from attrib.progress import progress
from attrib.vlm import VLM

# A measurement runs a batch and returns tables by name, each with a column `example`.
Tables = dict[str, pd.DataFrame]
Measure = Callable[[VLM, Batch, Sequence[EditSample]], Tables]


@dataclass
class Collected:
    """Tables over all samples that could be used, and the rows that could not.

    Attributes:
        file: the dataset file that the samples' rows stand in, if there is one.
        tables: what the measurement returned, over all batches.
        used: the samples that are in the tables, in order.
        quarantined: the others: where each stands and what is wrong with it.
    """

    file: str = ""
    tables: Tables = field(default_factory=dict)
    used: list[EditSample] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def set_aside(self, sample: EditSample, where: str, reason: str) -> None:
        """Quarantine a sample whose row was well-formed."""
        row = sample.meta.get("row")
        self.quarantined.append(Quarantined(self.file or sample.id, row, where, reason))


@torch.no_grad()
def collect(
    vlm: VLM,
    samples: Sequence[EditSample],
    measure: Measure,
    *,
    batch_size: int = 8,
    what: str = "samples",
) -> Collected:
    """`measure` over the requests of `samples`.

    A sample whose image, prompt or numbers cannot be used is quarantined, the others go on.

    Raises:
        CannotStart: when not one sample could be used.
    """
    if batch_size < 1:
        raise AttribError(f"batch size: expected 1 or more, got {batch_size}")
    file = samples.provenance.get("file", "") if isinstance(samples, EditData) else ""
    done, parts = Collected(file), []
    for start in progress(range(0, len(samples), batch_size), what):
        good = _encoded(vlm, samples[start : start + batch_size], done)
        if good is None:
            continue
        batch, kept = good
        tables = measure(vlm, batch, kept)
        broken = _not_finite(tables)
        for sample in kept:
            if sample.id in broken:
                done.set_aside(sample, "value", broken[sample.id])
            else:
                done.used.append(sample)
        parts.append({n: t[~t["example"].isin(list(broken))] for n, t in tables.items()})
    if not done.used:
        raise CannotStart(_nothing_left(done.quarantined))
    done.tables = {
        name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]
    }
    return done


def provenance(
    vlm: VLM, data: EditData, done: Collected, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Everything needed to compute the same numbers again, as JSON can hold it."""
    config, folder = vlm.model.config, Path(vlm.model.name_or_path or "none")
    return {
        "model": {
            "name": vlm.name,
            "class": type(vlm.model).__name__,
            "layers": vlm.num_layers,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "commit": getattr(config, "_commit_hash", None),
            "weights_sha256": weights_digest(folder) if folder.is_dir() else None,
        },
        "data": {"name": data.name, "split": data.split, **data.provenance},
        "options": dict(options),
        "seed": seed,
        "examples": len(done.used),
        "quarantined": len(data.quarantined) + len(done.quarantined),
        "versions": versions(),
    }


def _encoded(
    vlm: VLM, samples: Sequence[EditSample], done: Collected
) -> tuple[Batch, list[EditSample]] | None:
    """The samples as a batch, without those that `done` now holds as quarantined."""
    opened: list[tuple[EditSample, Image.Image | None]] = []
    for sample in samples:
        try:
            opened.append((sample, sample.request.image))
        except BadRow as error:
            done.quarantined.append(Quarantined.of(error))
        except AttribError as error:  # of a photo that no row of a file asked for
            done.set_aside(sample, "image", str(error))
    try:
        return (_encode(vlm, opened), [sample for sample, _ in opened]) if opened else None
    except CannotStart:
        raise
    except AttribError as error:
        if len(opened) == 1:
            done.set_aside(opened[0][0], "prompt", str(error))
            return None
    # The message is about one of several: find it by asking for each alone.
    fine = []
    for sample, image in opened:
        try:
            _encode(vlm, [(sample, image)])
            fine.append((sample, image))
        except AttribError as error:
            done.set_aside(sample, "prompt", str(error))
    return (_encode(vlm, fine), [sample for sample, _ in fine]) if fine else None


def _encode(vlm: VLM, opened: Sequence[tuple[EditSample, Image.Image | None]]) -> Batch:
    images, prompts = zip(
        *((image, sample.request.prompt) for sample, image in opened), strict=True
    )
    return vlm.encode(list(images), list(prompts))


def _not_finite(tables: Tables) -> dict[str, str]:
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


def _nothing_left(quarantined: Sequence[Quarantined]) -> str:
    if not quarantined:
        return "no sample to work on: the data is empty; see `attrib data check`"
    return f"none of {len(quarantined)} rows can be used; the first: {quarantined[0]}"

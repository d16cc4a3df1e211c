"""The scores of VisEdit's influence mapper on visual tokens, and its training heatmaps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from figures.figure import Measured, Setting
from figures.measure import load_inputs, provenance
from figures.scene_objects import (
    ObjectCells,
    grid_cells,
    ground_truths_of,
    object_cells,
    thumbnail,
    truth_scores,
)
from figures.trained_editor import load_editor

if TYPE_CHECKING:
    from attrib.data import EditRequest, EditSample
    from attrib.model.batch import Grid
    from attrib.model.vlm import VLM

BATCH = 20
IMAGES = ("request", "other", "unrelated")
_IMAGE_OF = {"request": "request", "other picture": "other", "unrelated image": "unrelated",
            "other question": "request", "heat": "request"}  # fmt: skip
HEAT = "heat"
Map = Float[np.ndarray, " cell"]


class GridMap(NamedTuple):
    """Values of visual tokens, with their grid in an image."""

    values: Map
    grid: "Grid | None"

    @property
    def cells(self) -> Map:
        """The values on the grid; all values if there is no grid."""
        if self.grid is None:
            return self.values
        return self.values[self.grid.first : self.grid.first + self.grid.rows * self.grid.cols]


def measure_mapper(
    setting: Setting, name: str, shown: Mapping[str, int], images: Sequence[str] = IMAGES
) -> Measured:
    """Apply the influence mapper to all samples; keep maps and images of a few.

    Tables: "scores" (a row per example and map), "maps" and "captions" of the samples shown. Maps:
    "request", the image of the edit; "other picture" of the same scene; "unrelated image"; "other
    question", the image of the edit, with the edit of another question about it; "heat", the
    training target of the mapper.

    Args:
        setting: Model, data and editors; samples need a second image and an unrelated one.
        name: Name of the figure.
        shown: Number of samples to show per kind of question ("" for any kind).
        images: The images to keep, of `IMAGES`.
    """
    vlm, data = load_inputs(setting)
    editor = load_editor(setting, "visedit", vlm)
    usable = [s for s in data if s.visual_generality and s.visual_locality]
    maps = influence_maps(vlm, editor, usable)
    truths = ground_truths_of(data)
    scores = pd.DataFrame(
        [
            row
            for sample, mine in zip(usable, maps, strict=True)
            for row in _rows(sample, mine, truths.get(sample.id))
        ]
    )
    on_grid = [mine["request"].grid is not None for mine in maps]
    chosen = choose_samples(usable, on_grid, truths, shown)
    tables = {"scores": scores, "maps": _maps(usable, maps, chosen),
              "captions": _captions(usable, chosen)}  # fmt: skip
    site = editor.sites[0]
    more = {"layer": site.layer, "num_layers": vlm.num_layers,
            "target": editor.config.mapper_target}  # fmt: skip
    return Measured(
        tables, _images(usable, chosen, images), provenance(name, setting, len(usable), **more)
    )


@torch.no_grad()
def influence_maps(
    vlm: "VLM", editor: Any, samples: Sequence["EditSample"]
) -> list[dict[str, GridMap]]:
    """Return the maps of each sample by name, after the sigmoid."""
    from editors.methods.influence_target import target_heat

    site = editor.sites[0]
    heat = target_heat(vlm, samples, site.layer, editor.config)
    roles = {
        "request": [s.request for s in samples],
        "other picture": [s.visual_generality[0] for s in samples],
        "unrelated image": [s.visual_locality[0] for s in samples],
    }
    states = {role: _visual_states(vlm, some, site.layer) for role, some in roles.items()}
    last = [_prompt_state(vlm, editor, s.request) for s in samples]
    other = [_prompt_state(vlm, editor, q) if (q := other_question(s)) else None for s in samples]
    maps = []
    for i in range(len(samples)):
        mine = {role: _map(site.adapter, *states[role][i], last[i]) for role in roles}
        if (state := other[i]) is not None:
            mine["other question"] = _map(site.adapter, *states["request"][i], state)
        target = heat[i]["request"][0].mean(0).double().cpu().numpy()
        maps.append({**mine, HEAT: GridMap(target, mine["request"].grid)})
    return maps


def other_question(sample: "EditSample") -> "EditRequest | None":
    """Return another question about the same image, if the data have one."""
    types = sample.meta.get("hard_types") or []
    for kind, request in zip(types, sample.hard_locality, strict=False):
        if kind in ("same_image_same_kind", "same_image_other_kind"):
            return request
    return None


def choose_samples(
    samples: Sequence["EditSample"], on_grid: Sequence[bool], truths: Mapping[str, Any],
    shown: Mapping[str, int],
) -> list[int]:  # fmt: skip
    """Return the samples to show: the shortest questions per kind, about one object if known.

    If a kind has too few samples, others fill up.
    """
    fitting = [
        i
        for i in sorted(range(len(samples)), key=lambda i: len(samples[i].request.prompt))
        if on_grid[i] and (not truths or truths[samples[i].id].target_object() is not None)
    ]
    chosen: list[int] = []
    for kind, count in shown.items():
        same = [i for i in fitting if kind in ("", samples[i].meta.get("kind")) and i not in chosen]
        chosen += same[:count]
    others = [i for i in fitting if i not in chosen]
    return chosen + others[: sum(shown.values()) - len(chosen)]


def _visual_states(
    vlm: "VLM", requests: Sequence["EditRequest"], layer: int
) -> "list[tuple[torch.Tensor, Grid | None]]":
    """Return the layer's output at the visual tokens of each request, and their grid."""
    from attrib.forward.hooks import read

    found = []
    for start in range(0, len(requests), BATCH):
        some = requests[start : start + BATCH]
        batch = vlm.encode([r.image for r in some], [r.prompt for r in some])
        with read(vlm, [layer]) as hidden:
            vlm.logits(batch)
        visual = batch["visual"].to(hidden[layer].device)
        states = [h[at].clone() for h, at in zip(hidden[layer], visual, strict=True)]
        grids = [next((picture.grid for picture in own), None) for own in batch.pictures]
        found += zip(states, grids, strict=True)
    return found


def _prompt_state(vlm: "VLM", editor: Any, request: "EditRequest") -> torch.Tensor:
    """Return the state of the last prompt token of an edit, the mapper's query."""
    return editor.edit(vlm, request).memories[0].signals[editor.sites[0].key].last


def _map(adapter: Any, states: torch.Tensor, grid: "Grid | None", last: torch.Tensor) -> GridMap:
    scores = adapter.influence(states[None], last[None])[0].sigmoid()
    return GridMap(scores.double().cpu().numpy(), grid)


def _rows(sample: "EditSample", maps: Mapping[str, GridMap], truth: Any) -> list[dict[str, Any]]:
    rows = []
    for name, one in maps.items():
        objects: ObjectCells | None = None
        if name != "unrelated image":
            objects = object_cells(truth, one.grid, other=name == "other picture")
        same = name in ("request", "other question")
        agreement = rank_agreement(one.values, maps[HEAT].values) if same else float("nan")
        rows.append({
            "example": sample.id, "kind": str(sample.meta.get("kind", "")), "map": name,
            "mean": float(one.values.mean()), **truth_scores(one.cells, objects),
            "agreement": agreement,
        })  # fmt: skip
    return rows


def rank_agreement(one: Map, other: Map) -> float:
    """Return the rank correlation of two maps of the same cells."""
    from attrib.stats import spearman

    return spearman(one, other)


def _maps(
    samples: Sequence["EditSample"], maps: Sequence[Mapping[str, GridMap]], chosen: Sequence[int]
) -> pd.DataFrame:
    """Return the cells of the maps to show."""
    named = [(samples[i], name, one) for i in chosen for name, one in maps[i].items()]
    parts = [
        grid_cells(one.cells, one.grid, image).assign(example=sample.id, map=name)
        for sample, name, one in named
        if one.grid is not None
        for image in _requests(sample)[_IMAGE_OF[name]].images[:1]
    ]
    return pd.concat(parts, ignore_index=True)


def _captions(samples: Sequence["EditSample"], chosen: Sequence[int]) -> pd.DataFrame:
    rows = []
    for i in chosen:
        sample, other = samples[i], other_question(samples[i])
        rows.append({
            "example": sample.id, "kind": str(sample.meta.get("kind", "")),
            "prompt": sample.request.prompt, "answer": str(sample.meta.get("pred", "")),
            "target": sample.request.target, "other_question": other.prompt if other else "",
            "unrelated": sample.visual_locality[0].prompt,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _images(
    samples: Sequence["EditSample"], chosen: Sequence[int], names: Sequence[str]
) -> dict[str, np.ndarray]:
    images = {}
    for number, i in enumerate(chosen):
        of = _requests(samples[i])
        kept = {name: image for name in names for image in of[name].images[:1]}
        images |= {f"{number}-{name}": thumbnail(image) for name, image in kept.items()}
    return images


def _requests(sample: "EditSample") -> "dict[str, EditRequest]":
    """Return the requests that hold the images of a sample, by name in `IMAGES`."""
    requests = (sample.request, sample.visual_generality[0], sample.visual_locality[0])
    return dict(zip(IMAGES, requests, strict=True))

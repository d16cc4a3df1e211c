"""What VisEdit's influence mapper says of visual tokens, and the heatmap it was taught with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from figures.figure import Measured, Setting
from figures.measuring import about, opened
from figures.scene_objects import (
    Objects,
    objects_of,
    placed_cells,
    thumbnail,
    truth_scores,
    truths,
)
from figures.trained import load_editor

if TYPE_CHECKING:
    from attrib.data import EditRequest, EditSample
    from attrib.model.batch import Grid
    from attrib.model.vlm import VLM

BATCH = 20
PICTURES = ("request", "other", "unrelated")
_PICTURE = {"request": "request", "other picture": "other", "unrelated image": "unrelated",
            "other question": "request", "heat": "request"}  # fmt: skip
HEAT = "heat"
Map = Float[np.ndarray, " cell"]


class Placed(NamedTuple):
    """A map: values of visual tokens, and where these lie in which picture."""

    values: Map
    grid: "Grid | None"

    @property
    def cells(self) -> Map:
        """The values that lie on the grid; all of them where there is none."""
        if self.grid is None:
            return self.values
        return self.values[self.grid.first : self.grid.first + self.grid.rows * self.grid.cols]


def measure_mapper(
    setting: Setting, name: str, shown: Mapping[str, int], images: Sequence[str] = PICTURES
) -> Measured:
    """Maps of the influence mapper over the samples, and the maps and images of a few of them.

    Tables: "scores" (a row per example and map: "request", its own picture; "other picture" of the
    same; "unrelated image"; "other question": its own picture, but the edit is of another question
    about it; "heat", what the mapper is taught with), "maps" and "captions" of those shown.

    Args:
        setting: What on; samples without another picture and an unrelated one are left out.
        name: Of the figure.
        shown: How many samples to show of each kind of question ("" for any).
        images: Which of their pictures to keep, of `PICTURES`.
    """
    vlm, data = opened(setting)
    editor = load_editor(setting, "visedit", vlm)
    usable = [s for s in data if s.visual_generality and s.visual_locality]
    maps = mapper_maps(vlm, editor, usable)
    known = truths(data)
    scores = pd.DataFrame(
        [
            row
            for sample, mine in zip(usable, maps, strict=True)
            for row in _rows(sample, mine, known.get(sample.id))
        ]
    )
    placed = [mine["request"].grid is not None for mine in maps]
    picked = pick(usable, placed, known, shown)
    tables = {"scores": scores, "maps": _maps(usable, maps, picked),
              "captions": _captions(usable, picked)}  # fmt: skip
    site = editor.sites[0]
    more = {"layer": site.layer, "num_layers": vlm.num_layers,
            "target": editor.config.mapper_target}  # fmt: skip
    return Measured(
        tables, _images(usable, picked, images), about(name, setting, len(usable), **more)
    )


@torch.no_grad()
def mapper_maps(
    vlm: "VLM", editor: Any, samples: Sequence["EditSample"]
) -> list[dict[str, Placed]]:
    """Per sample its maps by name, after the sigmoid."""
    from editors.methods.influence_objective import ATTRIBUTIONS, target_heat

    site = editor.sites[0]
    heat = target_heat(vlm, samples, site.layer, ATTRIBUTIONS[editor.config.mapper_target])
    roles = {
        "request": [s.request for s in samples],
        "other picture": [s.visual_generality[0] for s in samples],
        "unrelated image": [s.visual_locality[0] for s in samples],
    }
    states = {role: _visual_states(vlm, some, site.layer) for role, some in roles.items()}
    last = [_last(vlm, editor, s.request) for s in samples]
    other = [_last(vlm, editor, q) if (q := other_question(s)) else None for s in samples]
    maps = []
    for i in range(len(samples)):
        mine = {role: _map(site.adapter, *states[role][i], last[i]) for role in roles}
        if (steered := other[i]) is not None:
            mine["other question"] = _map(site.adapter, *states["request"][i], steered)
        taught = heat[i]["request"][0].double().cpu().numpy()
        maps.append({**mine, HEAT: Placed(taught, mine["request"].grid)})
    return maps


def other_question(sample: "EditSample") -> "EditRequest | None":
    """Another question about the same picture, where the data have one."""
    types = sample.meta.get("hard_types") or []
    for kind, request in zip(types, sample.hard_locality, strict=False):
        if kind in ("same_image_same_kind", "same_image_other_kind"):
            return request
    return None


def pick(
    samples: Sequence["EditSample"], placed: Sequence[bool], known: Mapping[str, Any],
    shown: Mapping[str, int],
) -> list[int]:  # fmt: skip
    """The samples to show: the shortest questions of each kind, about one object where known.

    Where there are not so many of a kind, samples of any other make up for them.
    """
    fitting = [
        i
        for i in sorted(range(len(samples)), key=lambda i: len(samples[i].request.prompt))
        if placed[i] and (not known or known[samples[i].id].target_object() is not None)
    ]
    picked: list[int] = []
    for kind, count in shown.items():
        same = [i for i in fitting if kind in ("", samples[i].meta.get("kind")) and i not in picked]
        picked += same[:count]
    others = [i for i in fitting if i not in picked]
    return picked + others[: sum(shown.values()) - len(picked)]


def _visual_states(
    vlm: "VLM", requests: Sequence["EditRequest"], layer: int
) -> "list[tuple[torch.Tensor, Grid | None]]":
    """The states of the visual tokens of each request behind a layer, and their grid."""
    from attrib.forward.hooks import read

    found = []
    for start in range(0, len(requests), BATCH):
        some = requests[start : start + BATCH]
        batch = vlm.encode([r.image for r in some], [r.prompt for r in some])
        with read(vlm, [layer]) as hidden:
            vlm.logits(batch)
        visual = batch["visual"].to(hidden[layer].device)
        states = [h[at].clone() for h, at in zip(hidden[layer], visual, strict=True)]
        found += zip(states, batch.grids, strict=True)
    return found


def _last(vlm: "VLM", editor: Any, request: "EditRequest") -> torch.Tensor:
    """The state that steers the mapper of an edit: of the last token of its prompt."""
    return editor.edit(vlm, request).memories[0].signals[editor.sites[0].key].last


def _map(adapter: Any, states: torch.Tensor, grid: "Grid | None", last: torch.Tensor) -> Placed:
    scores = adapter.influence(states[None], last[None])[0].sigmoid()
    return Placed(scores.double().cpu().numpy(), grid)


def _rows(sample: "EditSample", maps: Mapping[str, Placed], truth: Any) -> list[dict[str, Any]]:
    rows = []
    for name, one in maps.items():
        where: Objects | None = None
        if name != "unrelated image":
            where = objects_of(truth, one.grid, other=name == "other picture")
        same = name in ("request", "other question")
        agreement = rank_agreement(one.values, maps[HEAT].values) if same else float("nan")
        rows.append({
            "example": sample.id, "kind": str(sample.meta.get("kind", "")), "map": name,
            "mean": float(one.values.mean()), **truth_scores(one.cells, where),
            "agreement": agreement,
        })  # fmt: skip
    return rows


def rank_agreement(one: Map, other: Map) -> float:
    """Rank correlation of two maps of the same cells."""
    from attrib.stats import spearman

    return spearman(one, other)


def _maps(
    samples: Sequence["EditSample"], maps: Sequence[Mapping[str, Placed]], picked: Sequence[int]
) -> pd.DataFrame:
    """The cells of the maps that are shown."""
    named = [(samples[i], name, one) for i in picked for name, one in maps[i].items()]
    parts = [
        placed_cells(one.cells, one.grid, image).assign(example=sample.id, map=name)
        for sample, name, one in named
        if one.grid is not None and (image := _pictures(sample)[_PICTURE[name]].image) is not None
    ]
    return pd.concat(parts, ignore_index=True)


def _captions(samples: Sequence["EditSample"], picked: Sequence[int]) -> pd.DataFrame:
    rows = []
    for i in picked:
        sample, other = samples[i], other_question(samples[i])
        rows.append({
            "example": sample.id, "kind": str(sample.meta.get("kind", "")),
            "prompt": sample.request.prompt, "answer": str(sample.meta.get("pred", "")),
            "target": sample.request.target, "other_question": other.prompt if other else "",
            "unrelated": sample.visual_locality[0].prompt,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _images(
    samples: Sequence["EditSample"], picked: Sequence[int], names: Sequence[str]
) -> dict[str, np.ndarray]:
    images = {}
    for number, i in enumerate(picked):
        of = _pictures(samples[i])
        kept = {name: image for name in names if (image := of[name].image) is not None}
        images |= {f"{number}-{name}": thumbnail(image) for name, image in kept.items()}
    return images


def _pictures(sample: "EditSample") -> "dict[str, EditRequest]":
    """What has the pictures of a sample, by their names."""
    requests = (sample.request, sample.visual_generality[0], sample.visual_locality[0])
    return dict(zip(PICTURES, requests, strict=True))

"""Heatmaps and answers of a model before and after an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures import scene_objects
from figures.figure import Measured, Setting
from figures.influence_maps import choose_samples, other_question, rank_agreement
from figures.measure import load_inputs, provenance
from figures.trained_editor import load_editor

if TYPE_CHECKING:
    from attrib.data import EditRequest, EditSample
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM

REQUEST, UNRELATED, CONTROL, REPEAT = "Rel", "M-Loc", "other question", "other noise"
INPUTS = (REQUEST, "T-Gen", "V-Gen", UNRELATED)
NOISE, PAPER_NOISE = 0.1, 3.0  # standard deviations; see LOG.md, 2026-11-23, on the choice
DRAWS = 2  # noise samples per heatmap
HOTTEST = 0.1  # share of the visual tokens that count as hottest
MEAN = -1  # in place of a layer: the mean over layers
ANSWER_TOKENS = 8
Heat = Float[np.ndarray, "input layer visual"]


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """The inputs of one sample before and after its edit.

    Attributes:
        requests: By input; `CONTROL` is another question about the same image.
        batch: The encoded requests, in this order.
        before: Heat of the unedited model, with noise of `NOISE`.
        after: Heat with the edit and another noise seed, so that agreement is not shared noise.
        again: Heat of the unedited model with the noise seed of `after`.
        paper: Heat before and after with the paper's noise.
        answers: By input, before and after.
    """

    requests: "Mapping[str, EditRequest]"
    batch: "Batch"
    before: Heat
    after: Heat
    again: Heat
    paper: tuple[Heat, Heat]
    answers: dict[str, tuple[str, str]]


def measure_edited(
    setting: Setting, name: str, shown: Mapping[str, int], num_layers: int
) -> Measured:
    """Compare heatmaps before and after VisEdit's edits; keep maps of a few samples.

    Tables: "changes", "layers" (mean rank correlation before and after, by input and layer), "maps"
    and "captions" of the samples shown. Edits have no gate, as in the paper.

    Args:
        setting: Model, data and editors; samples need a second image and an unrelated one.
        name: Name of the figure.
        shown: Number of samples to show per kind of question.
        num_layers: Layers to show maps of; 0 for the mean over all layers after the adapter.
    """
    vlm, data = load_inputs(setting)
    editor = load_editor(setting, "visedit", vlm).with_gate(None)
    first = editor.sites[0].layer
    layers = list(range(first + 1, vlm.num_layers - 1)) or [vlm.num_layers - 1]
    known = scene_objects.ground_truths_of(data)
    usable = [s for s in data if s.text_generality and s.visual_generality and s.visual_locality]
    picked = choose_samples(usable, [True] * len(usable), known, shown)
    wanted = evenly_spaced(layers, num_layers) if num_layers else [MEAN]
    rows, by_layer, maps, captions, images = [], [], [], [], {}
    for i, sample in enumerate(usable):
        seen = measure_sample(vlm, editor, sample, layers, setting.seed)
        rows += changes(sample, seen, known.get(sample.id))
        by_layer.append(layer_agreement(seen, layers).assign(example=sample.id))
        if i in picked:
            number = picked.index(i)
            maps.append(shown_maps(sample, seen, layers, wanted).assign(number=number))
            captions.append(_caption(sample, seen, number))
            images |= _images(seen, number)
    tables = {
        "changes": pd.DataFrame(rows),
        "layers": _by_layer(pd.concat(by_layer), setting.seed),
        "maps": pd.concat(maps, ignore_index=True).sort_values("number", kind="stable"),
        "captions": pd.concat(captions).sort_values("number", kind="stable"),
    }
    more = {"layer": first, "layers": layers, "num_layers": vlm.num_layers, "noise": NOISE}
    return Measured(tables, images, provenance(name, setting, len(usable), **more))


def measure_sample(
    vlm: "VLM", editor: Any, sample: "EditSample", layers: Sequence[int], seed: int
) -> BeforeAfter:
    """Compute heatmaps and answers for the inputs of one sample, before and after its edit."""
    import attrib

    judged = (sample.text_generality, sample.visual_generality, sample.visual_locality)
    asked = [sample.request, *(some[0] for some in judged)]
    requests = {str(name): one for name, one in zip(INPUTS, asked, strict=True)}
    if (control := other_question(sample)) is not None:
        requests[CONTROL] = control
    some = list(requests.values())
    batch = vlm.encode([r.image for r in some], [r.prompt for r in some], padding_side="left")
    batch = batch.named([f"{sample.id} {name}" for name in requests])

    def heat(noise: float, seed: int) -> Heat:
        found = attrib.heatmaps(vlm, batch, layers, noise=noise, draws=DRAWS, seed=seed)
        return found.double().cpu().numpy()

    before, again, paper = heat(NOISE, seed), heat(NOISE, seed + 1), heat(PAPER_NOISE, seed)
    old = vlm.generate(batch, max_new_tokens=ANSWER_TOKENS)
    with editor.edit(vlm, sample.request).applied(vlm):
        after, edited = heat(NOISE, seed + 1), heat(PAPER_NOISE, seed + 1)
        new = vlm.generate(batch, max_new_tokens=ANSWER_TOKENS)
    answers = dict(zip(requests, zip(old, new, strict=True), strict=True))
    return BeforeAfter(requests, batch, before, after, again, (paper, edited), answers)


def changes(sample: "EditSample", seen: BeforeAfter, truth: Any) -> list[dict[str, Any]]:
    """Return what an edit changes, one row per comparison of two heatmaps (means over layers).

    Each input is compared before and after the edit; for `CONTROL`, the request and the other
    question, both unedited; for `REPEAT`, the unedited request and itself. The two noise seeds of a
    comparison differ. Columns: agreement (rank correlation over visual tokens), agreement_paper
    (the same with the paper's noise), kept (share of the hottest tokens that stay hottest),
    mass_before and mass_after (share of the heat on the object asked about), answered (1 if the
    answer after the edit is the target; for M-Loc, if it is unchanged).
    """
    names = list(seen.requests)
    rows = []
    for i, name in enumerate(names[: len(INPUTS)]):
        pair = (_mean(seen.before, i), _mean(seen.after, i))
        paper = tuple(_mean(heat, i) for heat in seen.paper)
        row = _compared(*pair) | {"agreement_paper": rank_agreement(*paper)}
        old, new = seen.answers[name]
        wanted = old if name == UNRELATED else seen.requests[name].target
        grid = next((picture.grid for picture in seen.batch.pictures[i]), None)
        objects = (
            None
            if name == UNRELATED
            else scene_objects.object_cells(truth, grid, other=name == "V-Gen")
        )
        mass = [scene_objects.truth_scores(_on(heat, grid), objects)["mass"] for heat in pair]
        rows.append({"input": name, **row, "mass_before": mass[0], "mass_after": mass[1],
                     "answered": float(new.strip() == wanted.strip())})  # fmt: skip
    first = _mean(seen.before, 0)
    if CONTROL in names:
        rows.append({"input": CONTROL, **_compared(first, _mean(seen.again, len(INPUTS)))})
    rows.append({"input": REPEAT, **_compared(first, _mean(seen.again, 0))})
    head = {"example": sample.id, "kind": str(sample.meta.get("kind", ""))}
    return [head | row for row in rows]


def layer_agreement(seen: BeforeAfter, layers: Sequence[int]) -> pd.DataFrame:
    """Return the rank correlation of the heat before and after, by input and layer."""
    names = list(seen.requests)
    rows = []
    for at, layer in enumerate(layers):
        for i, name in enumerate(names[: len(INPUTS)]):
            pair = [heat[i, at] for heat in (seen.before, seen.after)]
            rows.append({"input": name, "layer": layer, "value": _agreement(*pair)})
        if CONTROL in names:
            pair = [seen.before[0, at], seen.again[len(INPUTS), at]]
            rows.append({"input": CONTROL, "layer": layer, "value": _agreement(*pair)})
    return pd.DataFrame(rows)


def shown_maps(
    sample: "EditSample", seen: BeforeAfter, layers: Sequence[int], wanted: Sequence[int]
) -> pd.DataFrame:
    """Return the cells of the maps before and after, for some layers or their mean."""
    parts = []
    for i, name in enumerate(INPUTS):
        pictures, images = seen.batch.pictures[i], seen.requests[name].images
        if not images or (grid := pictures[0].grid) is None:
            continue
        for edited, heat in enumerate((seen.before, seen.after)):
            for layer in wanted:
                values = _mean(heat, i) if layer == MEAN else heat[i, layers.index(layer)]
                cells = scene_objects.grid_cells(_on(values, grid), grid, images[0])
                parts.append(cells.assign(input=name, edited=edited, layer=layer))
    return pd.concat(parts, ignore_index=True).assign(example=sample.id)


def evenly_spaced(layers: Sequence[int], num: int) -> list[int]:
    """Return `num` of the layers, evenly spaced from the first to the last."""
    at = np.linspace(0, len(layers) - 1, min(num, len(layers))).round().astype(int)
    return [layers[i] for i in at]


def _compared(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    return {"agreement": _agreement(one, other), "kept": _kept(one, other)}


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    return rank_agreement(one[both], other[both])


def _kept(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of one map's hottest tokens that are among the other's."""
    num = max(1, round(HOTTEST * np.isfinite(one).sum()))
    first, second = (set(np.argsort(-np.nan_to_num(x, nan=-1))[:num]) for x in (one, other))
    return len(first & second) / num


def _mean(heat: Heat, i: int) -> np.ndarray:
    """Return the mean over layers of one input's heat, without padding."""
    found = heat[i].mean(0)
    return found[np.isfinite(found)]


def _on(values: np.ndarray, grid: Any) -> np.ndarray:
    """Return the values on the grid."""
    return values if grid is None else values[grid.first :][: grid.rows * grid.cols]


def _by_layer(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    from attrib.results import Result

    return Result("agreement", table, {"seed": seed}).mean(["input", "layer"])


def _caption(sample: "EditSample", seen: BeforeAfter, number: int) -> pd.DataFrame:
    rows = []
    for name in INPUTS:
        before, after = seen.answers[name]
        rows.append({"number": number, "example": sample.id, "input": name,
                     "kind": str(sample.meta.get("kind", "")), "prompt": seen.requests[name].prompt,
                     "target": seen.requests[name].target, "before": before.strip(),
                     "after": after.strip()})  # fmt: skip
    return pd.DataFrame(rows)


def _images(seen: BeforeAfter, number: int) -> dict[str, np.ndarray]:
    kept = {REQUEST: "request", "V-Gen": "other", UNRELATED: "unrelated"}
    return {
        f"{number}-{short}": scene_objects.thumbnail(image)
        for name, short in kept.items()
        for image in seen.requests[name].images[:1]
    }

"""What a live editor is and does: read from its modules, and watched while it serves edits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from figures.figure import Measured, Setting
from figures.measuring import about, opened
from figures.trained import load_editor

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM

UNEXPECTED = "elsewhere"
LOSSES = ("reliability", "generality", "locality", "hard")
SHOWN = {"embed": "input embeddings", "site": "states at this layer",
         "both": "input embeddings and states at this layer", "none": "nothing"}  # fmt: skip


def measure_framework(setting: Setting, name: str, figure: str) -> Measured:
    """The structure of a trained editor, and what it does to the inputs of edits.

    Tables: "sites", "gate", "losses", and "acts" with a row per edit and input.
    """
    vlm, data = opened(setting)
    editor = load_editor(setting, name, vlm)
    # The paper's VisEdit has no gate: watched without one, nothing is left alone for its sake.
    watched = editor.with_gate(None) if name == "visedit" else editor
    tables = structure(editor) | {"acts": acts(vlm, watched, list(data))}
    return Measured(tables, {}, about(figure, setting, len(data), **sizes(vlm, editor, data[0])))


def structure(editor: Any) -> dict[str, pd.DataFrame]:
    """The tables "sites", "gate" (empty where there is none) and "losses" of an editor."""
    sites = pd.DataFrame([_site(editor, site) for site in editor.sites])
    gate = pd.DataFrame([] if editor.gate is None else [_gate(editor.gate)])
    if gate.empty:
        gate = pd.DataFrame(columns=["kind", "token", "layer", "threshold", "parameters"])
    return {"sites": sites, "gate": gate, "losses": _losses(editor)}


def sizes(vlm: "VLM", editor: Any, sample: "EditSample") -> dict[str, Any]:
    """Numbers of the model and of one sample, for the boxes of the drawing."""
    batch = vlm.encode([sample.request.image], [sample.request.prompt], [sample.request.target])
    kept = editor.edit(vlm, sample.request)
    return {
        "editor": editor.name,
        "num_layers": vlm.num_layers,
        "d_model": vlm.d_model,
        "visual_tokens": int(batch["visual"].sum()),
        "text_tokens": int(batch["text"].sum()),
        "edit_bytes": kept.num_bytes,
        "trainable": sum(p.numel() for p in editor.module.parameters()),
        "steps": int(editor.trained["training"]["steps"]) if editor.trained else 0,
        "samples": int(editor.trained["samples"]) if editor.trained else 0,
    }


@torch.no_grad()
def acts(vlm: "VLM", editor: Any, samples: Sequence["EditSample"]) -> pd.DataFrame:
    """What edits do to the inputs they are judged by, one row each.

    Columns: example, input (its relation to the edit), score (of the gate), open (1 where the gate
    lets it act; without a gate always), per site the share of its positions that it wrote (NaN
    where the input has none), elsewhere (positions written at a site's layer that belong to none of
    its sites), moved (1 where the output at the last prompt token is not the same bit for bit).
    """
    from editors.gating.inputs import related

    rows = []
    for sample in samples:
        inputs = related([sample])
        requests = [one.request for one in inputs]
        batch = vlm.encode([r.image for r in requests], [r.prompt for r in requests])
        found = _watch(vlm, editor, sample, batch)
        rows += [
            {"example": sample.id, "input": one.relation, **{k: v[i] for k, v in found.items()}}
            for i, one in enumerate(inputs)
        ]
    return pd.DataFrame(rows)


def _watch(
    vlm: "VLM", editor: Any, sample: "EditSample", batch: "Batch"
) -> Mapping[str, Sequence[float]]:
    """Per column of `acts` its values for the inputs of one batch."""
    from attrib.forward.hooks import read

    edit = editor.edit(vlm, sample.request)
    layers = sorted({site.layer for site in editor.sites} | set(_gate_layers(editor)))
    plain = vlm.logits(batch)
    with read(vlm, layers) as before, edit.applied(vlm), read(vlm, layers) as after:
        edited = vlm.logits(batch)
    wrote = {i: (before[i] != after[i]).any(-1) for i in layers}
    score, is_open = _opened(editor, edit, before, batch)
    columns = {"score": score, "open": is_open}
    for site in editor.sites:
        columns[site.key] = _share(wrote[site.layer], site.positions(batch.spans))
    columns[UNEXPECTED] = _elsewhere(editor, wrote, batch)
    last = batch["last"]
    columns["moved"] = (plain[last] != edited[last]).any(-1).int().tolist()
    return columns


def _opened(
    editor: Any, edit: Any, hidden: dict[int, Tensor], batch: "Batch"
) -> tuple[list[float], list[int]]:
    """The gate's score of each input, and whether it opens."""
    if editor.gate is None:
        return [float("nan")] * batch.size, [1] * batch.size
    states = editor.gate.states(hidden, batch)
    scores = editor.gate.scores(states, [edit.memories[0].gate])[:, 0]
    return scores.tolist(), (scores >= editor.gate.threshold).int().tolist()


def _share(wrote: Bool[Tensor, "batch pos"], at: Bool[Tensor, "batch pos"]) -> list[float]:
    return ((wrote & at).sum(1) / at.sum(1)).tolist()  # 0 / 0 is NaN: no such positions


def _elsewhere(
    editor: Any, wrote: dict[int, Bool[Tensor, "batch pos"]], batch: "Batch"
) -> list[int]:
    count = torch.zeros(batch.size, dtype=torch.long)
    for layer, changed in wrote.items():
        allowed = torch.zeros_like(changed)
        for site in editor.sites:
            if site.layer == layer:
                allowed = allowed | site.positions(batch.spans)
        count += (changed & ~allowed).sum(1)
    return count.tolist()


def _gate_layers(editor: Any) -> tuple[int, ...]:
    return () if editor.gate is None else tuple(editor.gate.layers)


def _site(editor: Any, site: Any) -> dict[str, Any]:
    adapter, kind = site.adapter, editor.config
    return {
        "key": site.key,
        "layer": site.layer,
        "modality": site.modality,
        "writes_last": int(site.write_last and site.modality == "text"),
        "d_model": adapter.down.in_features,
        "d_adapter": adapter.down.out_features,
        "num_heads": adapter.num_heads,
        "d_signal": adapter.key.in_features,
        "signal": kind.signal,
        "signal_span": kind.signal_span,
        "mapper": int(adapter.mapper is not None),
        "own_units": int(kind.own_units),
        "parameters": sum(p.numel() for p in adapter.parameters()),
    }


def _gate(gate: Any) -> dict[str, Any]:
    about_it = gate.config()
    return {
        "kind": about_it["gate"],
        "token": about_it.get("token", "prompt"),
        "layer": max(gate.layers),
        "threshold": float(gate.threshold) if about_it["gate"] != "open" else float("nan"),
        "parameters": sum(t.numel() for name, t in gate.tensors().items() if name[:3] == "net"),
    }


def _losses(editor: Any) -> pd.DataFrame:
    """The terms of the loss that the editor was trained with, with their weights."""
    weights = dict(editor.trained["weights"]) if editor.trained else {}
    rows = [{"term": term, "weight": weights[term]} for term in LOSSES if weights.get(term)]
    if any(site.adapter.mapper is not None for site in editor.sites):
        terms = weights.get("mapper_terms", ())
        rows += [{"term": term, "weight": weights["influence"]} for term in terms]
    return pd.DataFrame(rows, columns=["term", "weight"])

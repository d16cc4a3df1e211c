"""The structure of a trained editor, and the effect of its edits on hidden states."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from figures.figure import Measured, Setting
from figures.measure import load_inputs, provenance
from figures.trained_editor import load_editor

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM

OTHER_POSITIONS = "other_positions"
LOSSES = ("reliability", "generality", "locality", "hard")
GATE_COLUMNS = ("kind", "token", "layer", "threshold", "parameters")


def measure_framework(setting: Setting, name: str, figure: str) -> Measured:
    """Measure the structure of a trained editor, and what it does to the inputs of edits.

    Tables: "sites", "gate" (empty without a gate), "losses", and "effects" (see `effects`).
    """
    vlm, data = load_inputs(setting)
    editor = load_editor(setting, name, vlm)
    # The paper's VisEdit has no gate; without one, every input meets the adapter.
    ungated = editor.with_gate(None) if name == "visedit" else editor
    tables = structure(editor) | {"effects": effects(vlm, ungated, list(data))}
    about = provenance(figure, setting, len(data), **sizes(vlm, editor, data[0]))
    return Measured(tables, {}, about)


def structure(editor: Any) -> dict[str, pd.DataFrame]:
    """Return the tables "sites", "gate" and "losses" of an editor."""
    sites = pd.DataFrame([_site(editor, site) for site in editor.sites])
    gates = [] if editor.gate is None else [_gate(editor.gate)]
    gate = pd.DataFrame(gates, columns=list(GATE_COLUMNS))
    return {"sites": sites, "gate": gate, "losses": _losses(editor)}


def sizes(vlm: "VLM", editor: Any, sample: "EditSample") -> dict[str, Any]:
    """Return the sizes of the model, of one sample and of the editor that the diagram names."""
    batch = vlm.encode([sample.request.image], [sample.request.prompt], [sample.request.target])
    edit = editor.edit(vlm, sample.request)
    return {
        "editor": editor.name,
        "num_layers": vlm.num_layers,
        "d_model": vlm.d_model,
        "visual_tokens": int(batch["visual"].sum()),
        "text_tokens": int(batch["text"].sum()),
        "edit_bytes": edit.num_bytes,
        "trainable": sum(p.numel() for p in editor.module.parameters()),
        "steps": int(editor.trained["training"]["steps"]) if editor.trained else 0,
        "samples": int(editor.trained["samples"]) if editor.trained else 0,
    }


@torch.no_grad()
def effects(vlm: "VLM", editor: Any, samples: Sequence["EditSample"]) -> pd.DataFrame:
    """Apply each edit to the inputs that it is scored on; one row per input.

    Columns: example; input (its relation to the edit); score (of the gate); open (1 if the gate
    opens, always 1 without a gate); per site the share of its positions that changed (NaN if the
    input has none); other_positions (number of positions that changed at the layer of a site and
    belong to no site); output_changed (1 unless the logits at the last prompt token are bit for bit
    the same).
    """
    from editors.gating.features import related_inputs

    rows = []
    for sample in samples:
        inputs = related_inputs([sample])
        requests = [one.request for one in inputs]
        batch = vlm.encode([r.image for r in requests], [r.prompt for r in requests])
        relations = {"example": sample.id, "input": [one.relation for one in inputs]}
        rows.append(pd.DataFrame(relations | _effects_of_edit(vlm, editor, sample, batch)))
    return pd.concat(rows, ignore_index=True)


def _effects_of_edit(
    vlm: "VLM", editor: Any, sample: "EditSample", batch: "Batch"
) -> dict[str, Sequence[float]]:
    """Return the columns of `effects` for the inputs of one batch."""
    from attrib.forward.hooks import read

    edit = editor.edit(vlm, sample.request)
    layers = sorted({site.layer for site in editor.sites} | set(_gate_layers(editor)))
    plain = vlm.logits(batch)
    with read(vlm, layers) as before, edit.applied(vlm), read(vlm, layers) as after:
        edited = vlm.logits(batch)
    changed = {layer: (before[layer] != after[layer]).any(-1) for layer in layers}
    score, is_open = _gate_decisions(editor, edit, before, batch)
    columns = {"score": score, "open": is_open}
    others = {layer: at.clone() for layer, at in changed.items()}
    for site in editor.sites:
        at = site.positions(batch.spans)
        columns[site.key] = _share(changed[site.layer], at)
        others[site.layer] &= ~at
    columns[OTHER_POSITIONS] = torch.stack([at.sum(1) for at in others.values()]).sum(0).tolist()
    last = batch["last"]
    columns["output_changed"] = (plain[last] != edited[last]).any(-1).int().tolist()
    return columns


def _gate_decisions(
    editor: Any, edit: Any, hidden: dict[int, Tensor], batch: "Batch"
) -> tuple[list[float], list[int]]:
    """Return the gate's score of each input, and 1 where it opens."""
    if editor.gate is None:
        return [float("nan")] * batch.size, [1] * batch.size
    states = editor.gate.states(hidden, batch)
    scores = editor.gate.scores(states, [edit.memories[0].gate])[:, 0]
    return scores.tolist(), (scores >= editor.gate.threshold).int().tolist()


def _share(changed: Bool[Tensor, "batch pos"], at: Bool[Tensor, "batch pos"]) -> list[float]:
    return ((changed & at).sum(1) / at.sum(1)).tolist()  # 0 / 0 is NaN: no such positions


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
    config = gate.config()
    return {
        "kind": config["gate"],
        "token": config.get("token", "prompt"),
        "layer": max(gate.layers),
        "threshold": float(gate.threshold) if config["gate"] != "open" else float("nan"),
        "parameters": sum(t.numel() for name, t in gate.tensors().items() if name[:3] == "net"),
    }


def _losses(editor: Any) -> pd.DataFrame:
    """Return the terms of the training loss with their weights."""
    weights = dict(editor.trained["weights"]) if editor.trained else {}
    rows = [{"term": term, "weight": weights[term]} for term in LOSSES if weights.get(term)]
    if any(site.adapter.mapper is not None for site in editor.sites):
        terms = weights.get("mapper_terms", ())
        rows += [{"term": term, "weight": weights["influence"]} for term in terms]
    return pd.DataFrame(rows, columns=["term", "weight"])

"""Edits of tiny models that tests share."""

import torch
from conftest import picture

from attrib.data.samples import EditRequest, EditSample
from editors.adapters import EditAdapter
from editors.adapters.edit_signal import edit_signal
from editors.adapters.sites import MemoryEntry, Site


def requests(num=4, target="blue thing"):
    """Ragged requests, the second without an image."""
    return [
        EditRequest(
            None if i == 1 else picture(40 + 10 * i, 60, seed=i),
            f"What is {'very ' * i}red?",
            target,
        )
        for i in range(num)
    ]


def samples(num=6):
    """Edits with every kind of input they are judged by."""
    return [
        EditSample(
            id=f"edit-{i}",
            request=EditRequest(picture(seed=i), f"What is {'very ' * (i % 3)}red?", "blue thing"),
            text_generality=[EditRequest(picture(seed=i), "Tell me what is red.", "blue thing")],
            visual_generality=[EditRequest(picture(seed=50 + i), "What is red?", "blue thing")],
            text_locality=[EditRequest(None, "nq question: who wrote it?", "Emma")],
            visual_locality=[EditRequest(picture(seed=100 + i), "Where is it?", "on top")],
            hard_locality=[EditRequest(picture(seed=i), "Where is it?", "below")],
        )
        for i in range(num)
    ]


def sites(vlm, layers=((0, "visual"), (1, "text")), init="published", **options):
    """Small adapters, by default such as disturb the model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [Site(i, m, EditAdapter(vlm.d_model, 16, 2, init, **options)) for i, m in layers]


def memory_of(request, query, written, gate=None):
    """What is kept of an edit whose states are those of `query`, all of them shown."""
    signals = {
        s.key: edit_signal("site", "all", s.layer, query.hidden, query.last) for s in written
    }
    return MemoryEntry(request, signals, gate or {})

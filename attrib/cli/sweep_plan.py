"""What `attrib sweep --dry-run` adds to the plan: copies, work, memory and time."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrib.cli.plan import shown_bytes
from attrib.errors import AttribError, SetupError

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM


def planned_sweep(
    arguments: Mapping[str, Any], batch_size: int, vlm: "VLM", data: "EditData"
) -> Iterator[str]:
    """What a sweep of the whole data takes, judged by its first batch.

    Args:
        arguments: of `attrib.analyses.cost_plan.sweep_cost`.
        batch_size: samples per pass.
        vlm: the model.
        data: the samples.
    """
    from attrib.analyses.cost_plan import sweep_cost

    batch = _first_batch(vlm, data, batch_size, visual=arguments["modality"] == "visual")
    cost = sweep_cost(vlm, batch, **arguments)
    rounds, seconds = len(data) / batch.size, _seconds(vlm, batch)
    forwards = cost.forwards * rounds + cost.test
    layers = arguments["layers"] or range(vlm.num_layers)
    sigmas = ", ".join(f"{sigma:g}" for sigma in arguments["sigmas"])
    draws = arguments["draws"]
    yield f"sweep: {len(data)} samples x {len(layers)} layers x sigmas {sigmas} x {draws} draw(s)"
    yield (
        f"cost: {cost.copies * rounds:,.0f} disturbed examples, {cost.share:.0%} of the "
        f"positions of each; the work of about {forwards * batch.size:,.0f} forward "
        f"passes over one sample (with hooks: {cost.naive * batch.size * rounds:,.0f})"
    )
    yield (
        f"memory: about {shown_bytes(cost.memory)} beside the model; up to {cost.at_once} "
        "disturbed examples at once, fewer where memory runs out"
    )
    yield (
        f"time: about {_shown(seconds * forwards)} on one process; a forward pass "
        f"over {batch.size} samples takes {seconds:.2g} s"
    )


def _first_batch(vlm: "VLM", data: "EditData", size: int, *, visual: bool) -> "Batch":
    """The first samples that can be encoded; with pictures only, if they are to be disturbed."""
    images, prompts = [], []
    for sample in data:
        try:
            image = sample.request.image
            if image is not None or not visual:
                vlm.encode([image], [sample.request.prompt])
                images.append(image)
                prompts.append(sample.request.prompt)
        except AttribError:
            continue  # the run will set it aside by name
        if len(prompts) == size:
            break
    if not prompts:
        raise SetupError("no sample of the data can be used; run without --dry-run for the reasons")
    return vlm.encode(images, prompts)


def _seconds(vlm: "VLM", batch: "Batch") -> float:
    """How long a forward pass takes; the first one in a program does not count."""
    import torch

    took = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            vlm.logits(batch)[:, -1, 0].tolist()  # waits for the device
            took.append(time.perf_counter() - start)
    return min(took)


def _shown(seconds: float) -> str:
    """A time for people: "40 s", "12 min", "3.5 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"

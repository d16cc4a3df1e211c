"""Noise sensitivity: options, cost estimate, figures and summary."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from attrib.errors import AttribError, SetupError
from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.options import PANEL, LayerOptions, option, parse_sigmas
from attrib.progress import show_bytes, show_seconds
from attrib.vocabulary import NoiseModality, Unit

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs.collected import Measure

SIGMAS = "0.1,0.3,0.5,0.7,1.0"
# Options that decide what is measured; those left out are printed with their defaults.
ANNOUNCED = (
    "model", "data", "batch_size", "modality", "sigmas", "unit", "draws", "layers", "exclude_last",
    "seed",
)  # fmt: skip


class SweepOptions(LayerOptions):
    """Options of `attrib sweep`."""

    free = frozenset({"max_copies"})

    modality: NoiseModality = option("text", "Which tokens the noise perturbs.", panel=PANEL)
    sigmas: str = option(SIGMAS, "Noise levels, separated by commas.", panel=PANEL)
    unit: Unit = option(
        "std",
        "std: sigma counts standard deviations of the perturbed states; abs: it is the noise's "
        "own standard deviation.",
        panel=PANEL,
    )
    draws: int = option(1, "Draws of noise to average over.", panel=PANEL, ge=1)
    exclude_last: bool = option(
        False,
        "Do not perturb the last prompt token.",
        panel=PANEL,
        alias="spare_last",
        flags=("--exclude-last", "--spare-last"),
    )
    max_copies: int | None = option(
        None,
        "Perturbed copies of examples to run at once.",
        panel=PANEL,
        shown="by size",
        alias="max_versions",
        ge=1,
    )

    @field_validator("sigmas", mode="before")
    @classmethod
    def _normalise_sigmas(cls, given: Any) -> str:
        # One spelling for the same numbers: the value identifies the run.
        return ",".join(map(repr, parse_sigmas(given, SIGMAS)))

    def arguments(self) -> dict[str, Any]:
        """Arguments of `attrib.sensitivity`, except seed and unit."""
        return {
            "modality": self.modality,
            "sigmas": parse_sigmas(self.sigmas, SIGMAS),
            "draws": self.draws,
            "layers": self.layer_list(),
            "exclude_last": self.exclude_last,
            "max_copies": self.max_copies,
        }


class Sensitivity(Analysis[SweepOptions]):
    """KL of the output under noise on one modality, layer by layer (DualEdit, Fig. 2)."""

    name = "sweep"
    Options = SweepOptions

    def announce(self) -> str:
        """The defaults in force, as they could be typed."""
        values = self.options.model_dump(exclude=self.options.model_fields_set)
        absent = {
            "batch_size": "as many samples per pass as fit",
            "layers": "all layers",
            "exclude_last": "last token perturbed too",
        }
        typed = [
            f"--{name.replace('_', '-')} {values[name]}"
            if values[name] or name == "seed"
            else absent[name]
            for name in ANNOUNCED
            if name in values
        ]
        return f"sweep: defaults: {', '.join(typed)}" if typed else ""

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.sensitivity.measure_sensitivity`."""
        from attrib.analyses.sensitivity import measure_sensitivity

        del samples
        unit, seed = self.options.unit, self.options.seed
        return partial(measure_sensitivity, **self.options.arguments(), unit=unit, seed=seed)

    def plan(self, vlm: "VLM", data: "EditData") -> Iterator[str]:
        """Perturbed copies, work, memory and time of the whole sweep, judged by its first batch."""
        from attrib.analyses.cost_plan import sweep_cost
        from attrib.runs import samples_per_pass

        arguments = self.options.arguments()
        visual = self.options.modality == "visual"
        size = self.options.batch_size or samples_per_pass(vlm, data)
        batch = _first_batch(vlm, data, size, visual=visual)
        cost = sweep_cost(vlm, batch, **arguments)
        rounds, seconds = len(data) / batch.size, _seconds_per_pass(vlm, batch)
        forwards = cost.forwards * rounds + cost.test
        layers = arguments["layers"] or range(vlm.num_layers)
        sigmas = ", ".join(f"{sigma:g}" for sigma in arguments["sigmas"])
        yield (
            f"sweep: {len(data)} samples x {len(layers)} layers x sigmas {sigmas} x "
            f"{arguments['draws']} draw(s)"
        )
        yield (
            f"cost: {cost.copies * rounds:,.0f} perturbed copies, {cost.share:.0%} of the "
            f"positions of each; as much as {forwards * batch.size:,.0f} forward "
            f"passes over one sample (with hooks: {cost.naive * batch.size * rounds:,.0f})"
        )
        yield (
            f"memory: about {show_bytes(cost.memory)} besides the model; up to {cost.at_once} "
            "perturbed copies at once, fewer if memory runs out"
        )
        yield (
            f"time: about {show_seconds(seconds * forwards)} on one process; a forward pass "
            f"over {batch.size} samples takes {seconds:.2g} s"
        )

    def plots(self, result: "Result") -> Plots:
        """KL over the layers per sigma, on a linear and on a logarithmic scale."""
        from attrib import plots

        return {
            "sensitivity": partial(plots.sensitivity, result),
            "sensitivity-log": partial(plots.sensitivity, result, log=True),
        }

    def summarize(self, result: "Result") -> str:
        """The most sensitive layers."""
        from attrib.report.intervention_summaries import summarize_sensitivity

        return summarize_sensitivity(result)


def _first_batch(vlm: "VLM", data: "EditData", size: int, *, visual: bool) -> "Batch":
    """The first samples that can be encoded; only those with an image if it is perturbed."""
    images, prompts = [], []
    for sample in data:
        try:
            image = sample.request.image
            if image is not None or not visual:
                vlm.encode([image], [sample.request.prompt])
                images.append(image)
                prompts.append(sample.request.prompt)
        except AttribError:
            continue  # the run quarantines it
        if len(prompts) == size:
            break
    if not prompts:
        raise SetupError("no sample of the data can be used; run without --dry-run for the reasons")
    return vlm.encode(images, prompts)


def _seconds_per_pass(vlm: "VLM", batch: "Batch") -> float:
    """Seconds of a forward pass: the faster of two, since the first one warms up."""
    import torch

    seconds = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            vlm.logits(batch)[:, -1, 0].tolist()  # waits for the device
            seconds.append(time.perf_counter() - start)
    return min(seconds)

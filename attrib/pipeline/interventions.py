"""Interventions, noise and another image's states: options, cost, figures and summaries."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import field_validator, model_validator

from attrib.pipeline.analysis import Analysis, AnswerTokenOptions, Plots
from attrib.pipeline.options import PANEL, LayerOptions, MeasureOptions, option
from attrib.pipeline.parsing import parse_sigmas
from attrib.progress import show_bytes, show_seconds
from attrib.vocabulary import NoiseModality, PatchSpan, Unit

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs.collected import Measure

SIGMAS = "0.1,0.3,0.5,0.7,1.0"
SPANS = ("visual", "text", "last", "all")
# Options that decide what is measured; those left out are printed with their defaults.
ANNOUNCED = (
    "model", "data", "batch_size", "modality", "sigmas", "unit", "draws", "layers", "exclude_last",
    "seed",
)  # fmt: skip


class SweepOptions(LayerOptions, AnswerTokenOptions):
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

    @model_validator(mode="after")
    def _last_is_text(self) -> "SweepOptions":
        if self.exclude_last and self.modality == "visual":
            raise ValueError("--exclude-last: the last prompt token is text; leave it out")
        return self

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
        measure = partial(measure_sensitivity, **self.options.arguments(), unit=unit, seed=seed)
        if not self.whole_passes:
            return measure
        from attrib.analyses.sensitivity_passes import sensitivity_by_passes

        return partial(measure, function=sensitivity_by_passes)

    def plan(self, vlm: "VLM", data: "EditData") -> Iterator[str]:
        """Perturbed copies, work, memory and time of the whole sweep, judged by its first batch."""
        from attrib.analyses.cost_plan import seconds_per_pass, sweep_cost
        from attrib.pipeline.source import first_batch
        from attrib.runs import samples_per_pass

        arguments = self.options.arguments()
        visual = self.options.modality == "visual"
        size = self.options.batch_size or samples_per_pass(vlm, data)
        batch = first_batch(vlm, data, size, visual=visual)
        cost = sweep_cost(vlm, batch, **arguments)
        rounds, seconds = len(data) / batch.size, seconds_per_pass(vlm, batch)
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


class PatchingOptions(MeasureOptions):
    """Options of `attrib patching`."""

    span: str = option(
        "visual,last",
        "Positions to patch: visual, text, last (the last prompt token), all (the control); "
        "several separated by commas.",
        panel=PANEL,
    )
    other_image: Path | None = option(None, "The other photo.", panel="One photo")
    fit: bool = option(
        False,
        "Crop and scale the other image to the size of the first, for models whose number of "
        "visual tokens depends on the size.",
        panel=PANEL,
        flags=("--fit",),
    )

    @field_validator("span", mode="before")
    @classmethod
    def _normalise_spans(cls, given: Any) -> str:
        names = [name.strip() for name in str(given).split(",")]
        if unknown := [name for name in names if name not in SPANS]:
            raise ValueError(f"no span {unknown[0]!r}; spans are {', '.join(SPANS)}")
        # One spelling for the same spans: the value identifies the run.
        return ",".join(name for name in SPANS if name in names)

    @model_validator(mode="after")
    def _two_photos(self) -> "PatchingOptions":
        one_photo = "prompt" in type(self).model_fields
        prompt = getattr(self, "prompt", None)
        if one_photo and (prompt is None) != (self.other_image is None):
            raise ValueError("one photo: give --image, --prompt and --other-image together")
        return self


class Patching(Analysis[PatchingOptions]):
    """At which layers the answer follows the states of another image."""

    name = "patching"
    Options = PatchingOptions

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.patching.measure_patching`."""
        from attrib.analyses.patching import measure_patching
        from attrib.data import open_photo

        del samples
        path = self.options.other_image
        other = open_photo(path) if path else None
        how = {"spans": self._spans(), "other": other, "fit": self.options.fit}
        return partial(measure_patching, **how, skip_blank=True)

    def plan(self, vlm: "VLM", data: "EditData") -> Iterator[str]:
        """Forward passes per pair of images."""
        passes = 2 + len(self._spans()) * (vlm.num_layers - 1) / 2
        yield f"cost: at most {passes:g} forward passes for each of {len(data)} pairs"

    def plots(self, result: "Result") -> Plots:
        """Share of answers that follow the other image, and the logit difference."""
        from attrib import plots

        return {
            "patching": partial(plots.patching, result),
            "patching-difference": partial(plots.patching_difference, result),
        }

    def summarize(self, result: "Result") -> str:
        """Up to which layer patching flips the answer."""
        from attrib.report.intervention_summaries import summarize_patching

        return summarize_patching(result)

    def _spans(self) -> list[PatchSpan]:
        return cast("list[PatchSpan]", self.options.span.split(","))

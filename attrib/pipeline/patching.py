"""Modality patching: options, figures and summary."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import field_validator, model_validator

from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.options import PANEL, MeasureOptions, option
from attrib.vocabulary import PatchSpan

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs.collected import Measure

SPANS = ("visual", "text", "last", "all")


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

"""Attention profiles: figures and summary."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.options import MeasureOptions

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.results import Result
    from attrib.runs.collect import Measure


class Attention(Analysis[MeasureOptions]):
    """Attention of the last prompt token to words and image, per layer (DualEdit, Fig. 1)."""

    name = "attention"

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.attention.measure_attention`."""
        from attrib.analyses.attention import measure_attention

        del samples
        return measure_attention

    def plots(self, result: "Result") -> Plots:
        """Attention per token, and the share of each group of tokens."""
        from attrib import plots

        return {
            "attention": partial(plots.attention, result),
            "attention-share": partial(plots.attention, result, quantity="share"),
        }

    def summarize(self, result: "Result") -> str:
        """Where attention to the image is largest."""
        from attrib.report.summaries import summarize_attention

        return summarize_attention(result)

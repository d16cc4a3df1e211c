"""What a forward pass shows without a change: contributions and attention profiles."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.options import PANEL, MeasureOptions, option
from attrib.vocabulary import Norm

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.results import Result
    from attrib.runs.collected import Measure


class ContributionOptions(MeasureOptions):
    """Options of `attrib contributions`."""

    key: str = option(
        "argmax",
        "The token whose logit is decomposed: argmax (the model's answer), gold (the target), "
        "wrong (an unrelated answer, as a control) or token:WORD.",
        panel=PANEL,
    )
    norm: Norm = option(
        "none",
        "none: as in the paper; final: as in the authors' program; frozen: additive, the "
        "contributions sum to the logit.",
        panel=PANEL,
    )


class Contributions(Analysis[ContributionOptions]):
    """Contribution of each layer's attention and MLP to the key token (VisEdit, Figs. 1, 5, 6)."""

    name = "contributions"
    Options = ContributionOptions
    empty = "no sample has a wrong answer to use as key: give --key token:WORD"

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.contributions.measure_contributions`."""
        from attrib.analyses.contributions import measure_contributions

        del samples
        return partial(measure_contributions, key=self.options.key, norm=self.options.norm)

    def plots(self, result: "Result") -> Plots:
        """The curves of attention and MLP over the layers."""
        from attrib import plots

        title = f"Contribution to the key token ({self.options.key})"
        return {"contributions": partial(plots.contributions, result, title=title)}

    def summarize(self, result: "Result") -> str:
        """The layers that contribute most, with their share."""
        from attrib.report.summaries import summarize_contributions

        return summarize_contributions(result)


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

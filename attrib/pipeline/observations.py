"""What forward passes show without an intervention: contributions, attention, gate similarity."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import model_validator

from attrib.errors import AttribError
from attrib.pipeline.analysis import Analysis, AnswerTokenOptions, Plots
from attrib.pipeline.options import PANEL, MeasureOptions, option
from attrib.vocabulary import GateToken, Norm

if TYPE_CHECKING:
    import pandas as pd

    from attrib.data import EditData, EditSample
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs.collected import Measure


class ContributionOptions(AnswerTokenOptions):
    """Options of `attrib contributions`."""

    key: str = option(
        "argmax",
        "The token whose logit is decomposed: argmax (the model's answer), gold (the target), "
        "wrong (an unrelated answer, as a control) or token:WORD. Only gold reads --target.",
        panel=PANEL,
    )
    norm: Norm = option(
        "none",
        "none: as in the paper; final: as in the authors' program; frozen: additive, the "
        "contributions sum to the logit.",
        panel=PANEL,
    )

    @model_validator(mode="after")
    def _target_is_read(self) -> "ContributionOptions":
        installed = getattr(self, "edit", None)
        if getattr(self, "target", None) and self.key != "gold" and not installed:
            raise ValueError("--target is read with --key gold alone; give that, or leave it out")
        if self.answer_token and self.key in ("gold", "wrong"):
            raise ValueError(f"--answer-token: of the model's own answer, not --key {self.key}")
        return self


class Contributions(Analysis[ContributionOptions]):
    """Contribution of each layer's attention and MLP to the key token (VisEdit, Figs. 1, 5, 6)."""

    name = "contributions"
    Options = ContributionOptions
    unused = "without a wrong answer"
    empty = "no sample has a wrong answer to use as key: give --key token:WORD"

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.contributions.measure_contributions`."""
        from attrib.analyses.accuracy import right_answers
        from attrib.analyses.contributions import measure_contributions

        options = self.options
        truths = {} if options.answer_token else right_answers(samples)
        return partial(measure_contributions, key=options.key, norm=options.norm, truths=truths)

    def plots(self, result: "Result") -> Plots:
        """The curves of attention and MLP over the layers."""
        from attrib import plots

        title = f"Contribution to the key token ({self.options.key})"
        return {"contributions": partial(plots.contributions, result, title=title)}

    def summarize(self, result: "Result") -> str:
        """The layers that contribute most, with their share."""
        from attrib.report.summaries import summarize_contributions

        return summarize_contributions(result)


class Attention(Analysis[AnswerTokenOptions]):
    """Attention of the last prompt token to words and image, per layer (DualEdit, Fig. 1)."""

    name = "attention"
    Options = AnswerTokenOptions

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


class GateOptions(MeasureOptions):
    """Options of `attrib gate`."""

    free = frozenset({"token", "layer"})

    token: GateToken = option(
        "prompt_last",
        "The state that figures and summary are about; target_last reads the gold answer, as "
        "DualEdit's program does.",
        panel=PANEL,
    )
    layer: int | None = option(
        None,
        "The layer that figures and summary are about.",
        panel=PANEL,
        shown="the one with the highest AUC",
        ge=0,
    )


class Gate(Analysis[GateOptions]):
    """Can a gate tell an edit from other inputs? Similarity per layer (DualEdit, Fig. 4)."""

    name = "gate"
    Options = GateOptions
    needs_dataset = True
    _known: "tuple[Result, pd.DataFrame] | None" = None

    def check(self, vlm: "VLM") -> None:
        """Refuse a layer that the model does not have."""
        layer = self.options.layer
        if layer is not None and layer >= vlm.num_layers:
            raise AttribError(f"--layer {layer}: the model has layers 0 to {vlm.num_layers - 1}")

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.gating.measure_gate`."""
        from attrib.analyses.gating import measure_gate

        del samples
        return measure_gate

    def plan(self, vlm: "VLM", data: "EditData") -> Iterator[str]:
        """Inputs to run."""
        from attrib.analyses.gating import related

        del vlm
        inputs = sum(1 for _ in related(data.samples))
        yield f"cost: {len(data) + inputs} forward passes: {len(data)} edits, {inputs} other inputs"

    def plots(self, result: "Result") -> Plots:
        """AUC per layer against each kind of input and per state, then the similarities."""
        from attrib import plots
        from attrib.analyses.gating import TOKENS

        table = self._roc(result)
        layer = self._layer(table)
        return {
            "gate": partial(plots.gate_auc, table, self.options.token),
            "gate-tokens": partial(plots.gate_tokens, table),
            **{
                f"similarity-{token}": partial(plots.gate_similarity, result, table, token, layer)
                for token in TOKENS
            },
        }

    def summarize(self, result: "Result") -> str:
        """How well the similarity separates, with a table of AUCs."""
        from attrib.report.summaries import gate_auc_table, summarize_gate

        table = self._roc(result)
        sentence = summarize_gate(result, table, self.options.token, self.options.layer)
        return f"{sentence}\n\n{gate_auc_table(table, self._layer(table))}\n"

    def exports(self, result: "Result") -> dict[str, str]:
        """The ROC statistics as separation.csv."""
        return {"separation.csv": self._roc(result).to_csv(index=False)}

    def _roc(self, result: "Result") -> "pd.DataFrame":
        """ROC statistics of a result; computed once, since the bootstrap takes seconds."""
        from attrib.analyses.gate_roc import gate_roc

        if self._known is None or self._known[0] is not result:
            self._known = result, gate_roc(result)
        return self._known[1]

    def _layer(self, table: "pd.DataFrame") -> int:
        from attrib.analyses.gate_roc import best_layer

        given = self.options.layer
        return best_layer(table, self.options.token) if given is None else given

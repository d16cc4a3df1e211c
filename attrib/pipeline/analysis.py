"""The base class of analyses: how options become tables, figures and sentences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from attrib.pipeline.options import PANEL, MeasureOptions, option

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.data import EditData, EditSample
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs.collected import Measure, Tables

Opts = TypeVar("Opts", bound=MeasureOptions)
Plots = Mapping[str, Callable[[], "Axes"]]  # a figure is drawn when it is called for


class AnswerTokenOptions(MeasureOptions):
    """Options of analyses of one token of the answer."""

    answer_token: int | None = option(
        None,
        "Analyse this token of the model's own answer, from 0 on; those before it are fed as text "
        "of the prompt.",
        panel=PANEL,
        shown="0",
        ge=0,
    )


class Analysis(Generic[Opts]):
    """One analysis with its options. Subclasses define what is measured, drawn and said.

    The first line of a subclass's docstring is the help text of its command.

    Attributes:
        name: of the command, of the main table, and of the results.
        Options: the class of its options.
        needs_dataset: whether one photo is not enough.
        unused: what usable samples without a row in the main table lack; "" if all have one.
        empty: the error where no usable sample has a row in the main table.
        whole_passes: whether the model must run whole passes, as some edits need.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MeasureOptions]] = MeasureOptions
    needs_dataset: ClassVar[bool] = False
    unused: ClassVar[str] = ""
    empty: ClassVar[str] = "no sample has what this analysis measures"
    whole_passes: bool = False

    def __init__(self, options: Opts):
        self.options = options

    def measure(self, samples: Sequence["EditSample"]) -> "Measure":
        """The function that maps a batch and its samples to tables by name.

        Args:
            samples: all of the run, for analyses that need to know them in advance.
        """
        raise NotImplementedError

    def measurement(self, samples: Sequence["EditSample"]) -> "Measure":
        """`measure`, at the token of the answer that `--answer-token` names."""
        measured = self.measure(samples)
        number = getattr(self.options, "answer_token", None)
        return measured if not number else partial(_measure_after, measured, number)

    def plots(self, result: "Result") -> Plots:
        """The figures by file name, the main one first. `result.tables` has every table."""
        raise NotImplementedError

    def summarize(self, result: "Result") -> str:
        """What the result shows, in a few sentences."""
        raise NotImplementedError

    def announce(self) -> str:
        """A line about the options in force, printed before the run; "" for none."""
        return ""

    def check(self, vlm: "VLM") -> None:
        """Raise AttribError if the options do not fit the model."""

    def plan(self, vlm: "VLM", data: "EditData") -> Iterable[str]:
        """Lines that a dry run prints besides the number of passes, such as the cost."""
        del vlm, data
        return ()

    def exports(self, result: "Result") -> dict[str, str]:
        """Text files that a run writes besides tables and figures, by file name."""
        del result
        return {}

    def html(self, result: "Result") -> str:
        """The summary and the main figure as HTML."""
        from attrib.plots import svg

        drawn, summary = next(iter(self.plots(result).values()))(), self.summarize(result)
        # A page may show several results: their clip paths must not have the same ids.
        digest = sha256(f"{self.name} {summary} {self.options}".encode()).hexdigest()
        return f"<p>{escape(summary)}</p>{svg(drawn, target='page', prefix=f'r{digest[:8]}-')}"

    def recorded_options(self) -> dict[str, Any]:
        """The options as the manifest holds them."""
        return self.options.model_dump(mode="json", exclude={"dry_run"})


def _measure_after(
    measured: "Measure", number: int, vlm: "VLM", batch: "Batch", samples: Sequence["EditSample"]
) -> "Tables":
    from attrib.model.continuation import after_answer

    return measured(vlm, after_answer(vlm, batch, number), samples)

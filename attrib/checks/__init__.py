"""Check a model numerically: all checks for `attrib.check`, the quick ones for `attrib.load`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch

from attrib.checks import checks, continued
from attrib.checks.inputs import FAILURES, CheckFailed, CheckInputs
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM

Check = Callable[[CheckInputs], str]
QUICK: tuple[Check, ...] = (
    checks.hooked_logits_equal_plain_ones,
    checks.unembedded_last_output_is_the_logits,
    checks.residual_writes_add_up,
    checks.write_is_confined_to_its_span,
)
CHECKS: tuple[Check, ...] = (
    checks.spans_partition_the_prompt,
    *QUICK,
    checks.frozen_contributions_add_up_to_the_logit,
    checks.hooks_are_gone_after_an_error,
    checks.attention_rows_are_the_models,
    continued.resume_is_bit_equal,
    continued.replayed_changes_equal_written_ones,
    continued.suffixes_equal_whole_passes,
    checks.one_example_equals_a_batch,
    checks.padding_side_does_not_matter,
    continued.first_generated_token_is_the_argmax,
    continued.generation_does_not_depend_on_the_batch,
    continued.generation_writes_the_prompt_once,
    checks.grids_fit_the_visual_tokens,
    checks.each_picture_has_its_own_tokens,
)


class CheckResult(NamedTuple):
    """The outcome of one check; `detail` is what was measured, or the error."""

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True, repr=False)
class CheckReport:
    """The outcomes of all checks of the model `name`, in their order."""

    name: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if not result.passed)

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return not self.failed

    def to_frame(self) -> pd.DataFrame:
        """One row per check: check, passed, detail."""
        return pd.DataFrame(self.results, columns=["check", "passed", "detail"])

    def __repr__(self) -> str:
        total = len(self.results)
        lines = [f"{self.name}: {total - len(self.failed)} of {total} checks passed"]
        lines += [f"  failed: {result.check}: {result.detail}" for result in self.failed[:8]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


@torch.no_grad()
def check(vlm: VLM, selected: Sequence[Check] = CHECKS) -> CheckReport:
    """Check on a small example that `vlm` meets every assumption of this package.

    Args:
        vlm: The model.
        selected: Which checks to run; all by default.
    """
    inputs, results = CheckInputs(vlm), []
    first: dict[str, str] = {}
    for one in selected:
        try:
            passed, detail = True, one(inputs)
        except FAILURES as error:
            ours = isinstance(error, CheckFailed | AttribError)
            kind = "" if ours else f"{type(error).__name__}: "
            passed, detail = False, kind + " ".join(str(error).split())
        name = one.__name__.replace("_", " ")
        # An error of the shared inputs meets every check: it is told once.
        if not passed and first.setdefault(detail, name) != name:
            detail = f"the same as {first[detail]!r}"
        results.append(CheckResult(name, passed, detail))
    return CheckReport(vlm.name, tuple(results))


def verify(vlm: VLM) -> None:
    """Run the quick checks.

    Raises:
        SetupError: One fails; the message names the check and what was measured.
    """
    for result in check(vlm, QUICK).failed[:1]:
        raise SetupError(
            f"{vlm.name} cannot be used: {result.check}: no, {result.detail} "
            "(`attrib models check` shows all checks; verify=False loads the model anyway)"
        )

"""Check a model against the claims that this package rests on.

All claims are checked on every architecture of our tests and by `attrib models check`, the quick
ones whenever a model is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from attrib.checks import claims
from attrib.checks.claims import Case, Violation
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM


@dataclass(frozen=True)
class CheckResult:
    """Whether one claim holds for a model.

    Attributes:
        claim: What was checked.
        passed: Whether it holds.
        detail: What was measured.
    """

    claim: str
    passed: bool
    detail: str


Claim = Callable[[Case], str]
QUICK: tuple[Claim, ...] = (
    claims.hooked_logits_equal_plain_ones,
    claims.unembedded_last_output_is_the_logits,
    claims.residual_writes_add_up,
    claims.write_is_confined_to_its_span,
)
CHECKS: tuple[Claim, ...] = (
    claims.spans_partition_the_prompt,
    *QUICK,
    claims.frozen_contributions_add_up_to_the_logit,
    claims.hooks_are_gone_after_an_error,
    claims.attention_rows_are_the_models,
    claims.resume_is_bit_equal,
    claims.one_example_equals_a_batch,
    claims.padding_side_does_not_matter,
    claims.generation_does_not_depend_on_the_batch,
    claims.generation_writes_the_prompt_once,
    claims.grids_fit_the_visual_tokens,
)
# What a model or processor we have never seen may raise: in a check it is a finding, not a crash.
FINDINGS = (
    Violation,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
)


@torch.no_grad()
def check(vlm: VLM, checks: tuple[Claim, ...] = CHECKS) -> list[CheckResult]:
    """Whether each claim holds for `vlm`, in the order of `checks`."""
    case, results = Case(vlm), []
    for claim in checks:
        try:
            passed, detail = True, claim(case)
        except FINDINGS as finding:
            kind = (
                ""
                if isinstance(finding, Violation | AttribError)
                else f"{type(finding).__name__}: "
            )
            passed, detail = False, kind + " ".join(str(finding).split())
        results.append(CheckResult(claim.__name__.replace("_", " "), passed, detail))
    return results


def verify(vlm: VLM) -> None:
    """Check the quick claims.

    Raises:
        SetupError: One of them does not hold; the message says which, and what was measured.
    """
    for result in check(vlm, QUICK):
        if not result.passed:
            raise SetupError(
                f"{vlm.name} cannot be used: {result.claim}: no, {result.detail} "
                "(`attrib models check` shows all; verify=False loads it all the same)"
            )

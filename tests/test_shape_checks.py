"""Shapes and types are checked in tests: of functions, of closures at their first definition."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

from attrib.model.logits import freeze_norm


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="batch d_model"):
        freeze_norm(torch.nn.LayerNorm(4), torch.zeros(4))


def test_a_closure_is_checked_at_its_first_definition():
    def define():
        @jaxtyping.jaxtyped(typechecker=beartype)
        def closure(number: int) -> int:
            return number

        return closure

    first, second = define(), define()
    with pytest.raises(BeartypeCallHintViolation):
        first("one")
    assert second("one") == "one"


def test_names_in_quotes_are_checked_and_unknown_ones_are_not(monkeypatch):
    @jaxtyping.jaxtyped(typechecker=beartype)
    def same(first: "torch.Tensor", second: "Unknown" = None) -> "torch.Tensor":  # noqa: F821
        return first if second is None else second

    assert torch.equal(same(torch.zeros(2)), torch.zeros(2))
    for wrong in ((1,), (torch.zeros(2), 1)):
        with pytest.raises(BeartypeCallHintViolation):
            same(*wrong)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert same(1, 2) == 2

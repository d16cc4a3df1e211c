"""Shapes are checked in tests: in functions always, in closures at their first definition."""

import jaxtyping
import pytest
import torch
from beartype import beartype

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
    with pytest.raises(jaxtyping.TypeCheckError):
        first("one")
    assert second("one") == "one"

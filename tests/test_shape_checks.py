"""Shapes are checked in tests: in functions always, in closures at their first definition."""

import jaxtyping
import pytest
import shape_checks
import torch
from beartype import beartype
from jaxtyping import Float

from attrib.model.logits import freeze_norm


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="batch d_model"):
        freeze_norm(torch.nn.LayerNorm(4), torch.zeros(4))


def test_a_closure_is_checked_at_its_first_definition():
    def define():
        @jaxtyping.jaxtyped(typechecker=beartype)
        def closure(row: 'Float[torch.Tensor, " pos"]', other: "torch.Tensor | None" = None):
            return row if other is None else other

        return closure

    first, second, wrong = define(), define(), torch.zeros(1, 1)
    assert first(wrong[0]).shape == (1,)
    for arguments in ((wrong,), (wrong[0], "one")):
        with pytest.raises(jaxtyping.TypeCheckError):
            first(*arguments)
    assert second(wrong) is wrong


def test_the_first_calls_of_each_test_are_checked():
    @jaxtyping.jaxtyped(typechecker=beartype)
    def same(row: Float[torch.Tensor, " pos"]):
        return row

    right, wrong = torch.zeros(1), torch.zeros(1, 1)
    for _ in range(2):
        shape_checks.start_test()
        with pytest.raises(jaxtyping.TypeCheckError):
            same(wrong)
        for _ in range(shape_checks.CALLS):
            same(right)
        assert same(wrong) is wrong


def test_functions_without_shapes_are_left_as_they_are():
    def name(vlm: "list[int]", text: str | None) -> str:
        return text or str(vlm)

    assert jaxtyping.jaxtyped(typechecker=beartype)(name) is name

"""Metrics: laws and small cases worked by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from attrib.metrics import exact_match, kl, normalise, token_accuracy


@pytest.fixture
def logits():
    return torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def last():
    at = torch.zeros(3, 5, dtype=torch.bool)
    at[[0, 1, 2], [4, 2, 3]] = True
    return at


def test_a_distribution_does_not_diverge_from_itself(logits, last):
    assert torch.equal(kl(logits, logits, last), torch.zeros(3))


def test_kl_is_positive_and_points_from_clean_to_perturbed(logits, last):
    other = logits.flip(-1)
    forward, backward = kl(logits, other, last), kl(2 * other, logits, last)
    assert (forward > 0).all() and not torch.allclose(forward, backward)


def test_kl_equals_the_sum_worked_by_hand():
    p, q = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.9, 0.1]]])
    at = torch.ones(1, 1, dtype=torch.bool)
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert_close(kl(p.log(), q.log(), at), torch.tensor([expected]))


def test_kl_reads_the_given_position_alone(logits, last):
    elsewhere = torch.where(last[..., None], logits, logits + torch.randn(11))
    assert torch.equal(kl(logits, elsewhere, last), torch.zeros(3))
    here = torch.where(last[..., None], logits + torch.arange(11.0), logits)
    assert (kl(logits, here, last) > 0).all()


def test_kl_of_half_precision_is_computed_in_float32(logits, last):
    half, other = logits.bfloat16(), (logits * 8).bfloat16()
    assert kl(half, other, last).dtype == torch.float32
    assert_close(kl(half, other, last), kl(half.float(), other.float(), last))


def test_kl_refuses_more_than_one_position(logits):
    with pytest.raises(ValueError, match="one position per example, got \\[5, 5, 5\\]"):
        kl(logits, logits, torch.ones(3, 5, dtype=torch.bool))


def test_token_accuracy_counts_asked_positions(logits):
    labels = torch.full((3, 5), -100)
    labels[0, 1:3] = logits[0, 1:3].argmax(-1)
    labels[1, 2] = logits[1, 2].argmax(-1)
    labels[1, 3] = logits[1, 3].argmin(-1)
    accuracy = token_accuracy(logits, labels)
    assert accuracy[:2].tolist() == [1.0, 0.5] and accuracy[2].isnan()


def test_exact_match_forgives_case_spacing_and_marks():
    got = exact_match([" Red.", "two  dogs", "red", "ﬁve"], ["red", "two dogs", "blue", "five"])
    assert got.tolist() == [True, True, False, True]


def test_normalising_twice_changes_nothing():
    assert (
        normalise(normalise(" 'A  Big,  dog!' ")) == normalise(" 'A  Big,  dog!' ") == "a big, dog"
    )


def test_exact_match_needs_as_many_targets_as_answers():
    with pytest.raises(ValueError, match="zip"):
        exact_match(["a"], ["a", "b"])

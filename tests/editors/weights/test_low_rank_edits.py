"""Low-rank edits: exactly the dense ones in float32, and better than them in half precision."""

import pytest
import tiny_models
import torch
from conftest import picture, tiny_vlm

from attrib.data import EditRequest
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.base import WeightEdit, encode_requests, is_causal
from editors.io import load_edit, save_edit
from editors.weights.components import matrices_of
from editors.weights.low_rank import LowRankEdit, merged, shortened
from editors.weights.passes import LowRankUpdate

REQUEST = EditRequest(picture(), "What is it?", "red")


def update_of(matrix, rank, terms, seed, size=0.1):
    """An update of some rank with more terms, some of them zero."""
    made = torch.Generator().manual_seed(seed)
    d_out, d_in = matrix.shape
    mix = torch.randn(terms, rank, generator=made)
    left = size * mix @ torch.randn(rank, d_out, generator=made)
    right = mix @ torch.randn(rank, d_in, generator=made)
    left[0], right[-1] = 0, 0
    return LowRankUpdate(left[None], right[None])


def edit_of(vlm, rank=3, terms=12, seed=0, size=0.1):
    matrices = matrices_of(vlm, [2, 3], "up_down")
    updates = {m.name: update_of(m, rank, terms, seed + i, size) for i, m in enumerate(matrices)}
    return LowRankEdit.of(matrices, updates), updates


@torch.no_grad()
def logits(vlm, edit):
    with edit.applied(vlm):
        return vlm.logits(encode_requests(vlm, [REQUEST]))


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "gemma3"])
def test_the_model_answers_as_with_the_dense_weights(name):
    vlm = tiny_vlm(name)
    edit, updates = edit_of(vlm)
    weights = {n: w.detach() for n, w in vlm.model.named_parameters()}
    dense = WeightEdit({n: weights[n] + u.dense[0] for n, u in updates.items()})
    plain = logits(vlm, WeightEdit({}))
    factored = logits(vlm, edit)
    torch.testing.assert_close(factored, logits(vlm, dense), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(factored, plain, atol=1e-2) and is_causal(edit)
    assert torch.equal(logits(vlm, WeightEdit({})), plain)
    assert all(torch.equal(w, weights[n]) for n, w in vlm.model.named_parameters())


def test_an_edit_has_as_many_terms_as_its_rank():
    vlm = tiny_vlm("llava")
    edit, updates = edit_of(vlm, rank=3, terms=12)
    assert [u.left.shape[1] for u in edit.updates.values()] == [3] * 4
    for name, update in edit.updates.items():
        torch.testing.assert_close(update.dense, updates[name].dense, rtol=1e-5, atol=1e-5)
    sizes = [m.shape for m in matrices_of(vlm, [2, 3], "up_down")]
    assert edit.num_bytes == sum(4 * 3 * (d_out + d_in) for d_out, d_in in sizes)
    assert "ranks [3, 3, 3, 3]" in repr(edit)
    nothing = LowRankUpdate(torch.zeros(1, 4, 6), torch.ones(1, 4, 5))
    assert shortened(nothing).left.shape == (1, 0, 6)
    matrix = matrices_of(vlm, [2], "down")[0]
    empty = LowRankEdit({matrix.name: shortened(update_of(matrix, 1, 2, 0))})
    assert torch.equal(logits(vlm, empty), logits(vlm, WeightEdit({})))  # both terms are zero


def test_several_edits_are_their_sum_and_no_larger_than_the_rank_of_the_matrix():
    vlm = tiny_vlm("llava")
    edits = [edit_of(vlm, rank=30, terms=30, seed=10 * i)[0] for i in range(4)]
    both = merged(edits)
    for name, update in both.updates.items():
        total = sum(edit.updates[name].dense for edit in edits)
        torch.testing.assert_close(update.dense, total, rtol=1e-4, atol=1e-4)
        assert update.left.shape[1] <= min(total.shape[1:])
    assert merged(edits[:1]).num_bytes == edits[0].num_bytes


def test_in_half_precision_small_updates_are_not_rounded_away():
    vlm = VLM(*tiny_models.build("llava"))
    vlm.model.requires_grad_(False)
    half = VLM(*tiny_models.build("llava"))
    half.model.load_state_dict(vlm.model.state_dict())
    half.model.to(torch.bfloat16)
    vlm.model.load_state_dict({k: v.float() for k, v in half.model.state_dict().items()})
    (matrix,), (mine,) = matrices_of(vlm, [3], "down"), matrices_of(half, [3], "down")
    # Every element is far below a bfloat16 step of the weight; along one input they add up.
    x = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).sign()
    left = 1e-4 * torch.ones(1, 1, matrix.shape[0])
    update = LowRankUpdate(left, x[None, None])
    h = x.bfloat16()[None, None]
    wanted = (h.float() @ update.dense[0].T)[0, 0]

    def change(edit):
        before = mine.module(h).float()
        with edit.applied(half):
            return (mine.module(h).float() - before)[0, 0]

    factored = change(LowRankEdit({mine.name: update}))
    weight = mine.module.weight
    dense = change(WeightEdit({mine.name: (weight + update.dense[0]).to(weight.dtype)}))
    assert (factored - wanted).norm() < 0.5 * wanted.norm()
    assert (factored - wanted).norm() < 0.5 * (dense - wanted).norm()


def test_edits_are_saved_and_those_of_other_models_refused(tmp_path):
    vlm = tiny_vlm("llava")
    edit, _ = edit_of(vlm)
    again = load_edit(save_edit(edit, tmp_path / "edit.safetensors", vlm), vlm)
    assert torch.equal(logits(vlm, again), logits(vlm, edit))
    assert (tmp_path / "edit.safetensors").stat().st_size < edit.num_bytes + 4096
    with pytest.raises(AttribError, match="the edit is of another model"):
        logits(tiny_vlm("blip2_opt"), edit)

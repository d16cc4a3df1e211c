"""The adapter against plain formulas, its size against the papers', its start as the identity."""

import pytest
import torch
from torch.testing import assert_close

from editors.adapters import EditAdapter, InfluenceMapper, without_sinks
from editors.adapters.edit_signal import EditSignalBatch


def signals(batch=2, num=5, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, num, d, generator=generator)
    real = torch.ones(batch, num, dtype=torch.bool)
    real[1:, 3:] = False
    return EditSignalBatch(states, real, states[:, 2])


@pytest.mark.parametrize(("d_model", "total", "core"), [
    (2560, 22_054_400, 11_551_232), (4096, 34_654_208, 17_850_368),
])  # fmt: skip
def test_sizes_are_those_of_the_papers(d_model, total, core):
    with torch.device("meta"):
        with_mapper = EditAdapter(d_model, 1024, 8, mapper=True)
    sizes = {name: p.numel() for name, p in with_mapper.named_parameters()}
    assert sum(sizes.values()) == total
    assert sum(n for name, n in sizes.items() if not name.startswith("mapper")) == core


def test_it_starts_as_the_identity_and_as_published_it_does_not():
    h = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    assert torch.equal(EditAdapter(8, 4, 2)(h, signals()), h)
    assert not torch.allclose(EditAdapter(8, 4, 2, "published")(h, signals()), h, atol=1e-3)


def test_it_is_cross_attention_written_out():
    torch.manual_seed(0)
    adapter, edit = EditAdapter(8, 4, 2, "published", mapper=True), signals()
    h = torch.randn(2, 4, 8)
    want = h.clone()
    for b in range(2):
        states = adapter.norm_edit(edit.states[b][edit.real[b]])
        q = adapter.query(adapter.down(adapter.norm(h[b])))
        k, v = adapter.key(states), adapter.value(states)
        heads = []
        for part in (slice(0, 2), slice(2, 4)):
            weights = (q[:, part] @ k[:, part].T / 2**0.5).softmax(-1)
            heads.append(weights @ v[:, part])
        strength = torch.sigmoid(adapter.mapper(h[b : b + 1], edit.last[b : b + 1]))[0, :, None]
        want[b] += strength * adapter.up(torch.cat(heads, -1))
    assert_close(adapter(h, edit), want)


def test_the_mappers_score_is_the_mean_over_heads():
    torch.manual_seed(0)
    mapper = InfluenceMapper(8, 16, 4)
    h, last = torch.randn(2, 3, 8), torch.randn(2, 8)
    a, g = mapper.visual(mapper.norm(h)), mapper.prompt(mapper.norm_prompt(last))
    each = (a.unflatten(-1, (4, 2)) * g.unflatten(-1, (4, 2))[:, None]).sum(-1) / 2**0.5
    assert_close(mapper(h, last), each.mean(-1))


def test_padding_of_the_edit_has_no_say():
    torch.manual_seed(0)
    adapter, edit = EditAdapter(8, 4, 2, "published"), signals()
    h = torch.randn(2, 4, 8)
    noisy = torch.where(edit.real[..., None], edit.states, 100.0)
    assert_close(adapter(h, edit), adapter(h, EditSignalBatch(noisy, edit.real, edit.last)))


def test_half_precision_goes_in_and_comes_out():
    h = torch.randn(2, 4, 8).bfloat16()
    assert EditAdapter(8, 4, 2)(h, signals()).dtype == torch.bfloat16


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads"):
        EditAdapter(8, 4, 3)


def test_an_attention_sink_does_not_set_the_size_of_updates():
    torch.manual_seed(0)
    states = torch.randn(20, 8)
    with_sink = torch.cat([torch.zeros(1, 8), states])
    with_sink[0, 3] = 500.0
    assert torch.equal(without_sinks(with_sink), states)
    longest = states.clone()
    longest[4] *= 3 * states.norm(dim=-1).median() / states[4].norm()
    assert torch.equal(without_sinks(longest), longest)  # a few medians are no sink
    trusting, own = EditAdapter(8, 4, 2), EditAdapter(8, 4, 2)
    trusting.units.fit([with_sink])
    own.units.fit([without_sinks(with_sink)])
    assert trusting.units.size[3] > 50 * own.units.size[3]
    assert_close(trusting.units.size[:3], own.units.size[:3], rtol=0.2, atol=0)

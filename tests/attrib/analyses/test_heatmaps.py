"""Heatmaps: the closed form is brute force, noise belongs to examples, nothing is left behind."""

import copy
from inspect import unwrap

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

from attrib.analyses import key_value_swap
from attrib.analyses.direct_logits import last_writes
from attrib.analyses.heatmaps import (
    PUBLISHED_CODE,
    Perturbation,
    heatmap_pass,
    heatmaps,
    stack_maps,
)
from attrib.analyses.key_value_swap import LastQuery
from attrib.errors import AttribError
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import write
from attrib.forward.noise import base_noise
from attrib.forward.residual import residual_writes
from attrib.metrics import half_cosine_distance
from attrib.model.vlm import VLM


@pytest.fixture(scope="module")
def vlm():
    """One model: the closed form is compared on all architectures."""
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def batch(vlm):
    return encode(vlm, padding_side="left")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def in_double(vlm):
    return VLM(copy.deepcopy(vlm.model).double(), vlm.processor, vlm.name)


def encode(vlm, num=3, **settings):
    images, prompts = examples(num)
    return vlm.encode(images, prompts, **settings)


def neighbours(grids, token, radius, num):
    """The visual tokens that are perturbed together with one."""
    insides = {g: range(g.first, g.first + g.rows * g.cols) for g in grids if g is not None}
    grid = next((g for g, inside in insides.items() if token in inside), None)
    if radius == 0 or grid is None:
        return [token]
    inside = insides[grid]

    def place(i):
        return divmod(i - grid.first, grid.cols)

    here = place(token)
    return [
        i for i in range(num)
        if i in inside and max(abs(a - b) for a, b in zip(place(i), here, strict=True)) <= radius
    ]  # fmt: skip


class Brute:
    """One pass, and any layer's attention run again on other states of one of its examples."""

    def __init__(self, vlm, batch, row):
        self.vlm, self.batch, self.row, self.calls = vlm, batch, row, {}
        hooks = []
        for i, layer in enumerate(vlm.layers):
            for site, module in (("block", layer), ("attention", layer.self_attn)):
                keep = self._keeper(i, site)
                hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        vlm.logits(batch)
        for hook in hooks:
            hook.remove()

    def _keeper(self, layer, site):
        def keep(_module, args, kwargs):
            kwargs = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache")}
            hidden = args[0] if args else kwargs.pop("hidden_states")
            self.calls[layer, site] = (self._mine(hidden)[0], self._mine(kwargs))

        return keep

    def _mine(self, value):
        if isinstance(value, dict):
            return {k: self._mine(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple(map(self._mine, value))
        whole = not isinstance(value, torch.Tensor) or len(value) != self.batch.size
        return value if whole else value[self.row : self.row + 1]

    def outputs(self, layer, site, states):
        """What attention returns at the last prompt token for each version of the states."""
        block = self.vlm.layers[layer]
        found = []
        hook = block.self_attn.register_forward_hook(
            lambda _module, _args, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        (block if site == "block" else block.self_attn)(states, **self.calls[layer, site][1])
        hook.remove()
        return found[0][:, self.batch["last"][self.row]][:, 0].double()


def brute_force(vlm, batch, row=2, noise=3.0, unit="std", radius=0, draws=1, seed=0, site="block"):
    """Heatmaps of one of the examples, by running attention again for every perturbed token."""
    brute, visual = Brute(vlm, batch, row), batch["visual"][row].nonzero()[:, 0]
    maps = torch.zeros(vlm.num_layers, len(visual), dtype=torch.float64)
    for layer in range(vlm.num_layers):
        hidden = brute.calls[layer, site][0]
        clean = brute.outputs(layer, site, hidden[None])
        size = noise * (hidden[visual].std() if unit == "std" else 1.0)
        for draw in range(draws):
            drawn = base_noise(batch, "visual", vlm.d_model, seed=seed, draw=draw)[row]
            states = hidden.repeat(len(visual), 1, 1)
            grids = [own.grid for own in batch.pictures[row]]
            for n, one in enumerate(states):
                some = visual[neighbours(grids, n, radius, len(visual))]
                one[some] += size * drawn[some].to(hidden)
            out = brute.outputs(layer, site, states)
            maps[layer] += 0.5 * (1 - torch.cosine_similarity(out, clean)) / draws
    return maps


def expect_equal(maps, expected, **tolerance):
    num = expected.shape[1]
    assert_close(maps[2, :, :num], expected, **tolerance)
    assert maps[2, :, num:].isnan().all()


def radii(vlm):
    return [0] if encode(vlm, 1).grids[0] is None else [0, 3]


# --- the closed form is brute force


def test_the_closed_form_is_brute_force_in_double_precision(any_vlm, monkeypatch):
    monkeypatch.setattr(key_value_swap, "_one_by_one", None)  # no architecture falls back to it
    vlm = in_double(any_vlm)
    batch = encode(vlm).named("abc")
    for radius in radii(vlm):
        expected = brute_force(vlm, batch, radius=radius)
        expect_equal(heatmaps(vlm, batch, radius=radius), expected, atol=1e-10, rtol=1e-9)
        assert expected.max() > 1e-4


def test_the_closed_form_is_brute_force_in_single_precision(different_vlm):
    batch, how = encode(different_vlm).named("abc"), {"draws": 3, "seed": 4}
    for radius in radii(different_vlm):
        maps = heatmaps(different_vlm, batch, radius=radius, **how)
        expected = brute_force(different_vlm, batch, radius=radius, **how)
        expect_equal(maps.double(), expected, atol=1e-5 * expected.max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llava", PUBLISHED_CODE),
        ("qwen3_vl", PUBLISHED_CODE),
        ("gemma3", PUBLISHED_CODE | {"radius": 0, "unit": "std"}),
    ],
)
def test_the_published_site_is_brute_force_too(name, how):
    vlm = in_double(tiny_vlm(name))
    batch = encode(vlm).named("abc")
    expected = brute_force(vlm, batch, **how)
    expect_equal(heatmaps(vlm, batch, **how), expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("name", "radius"), [("llava", 1), ("qwen3_vl", 1), ("idefics3", 0)])
def test_the_closed_form_is_brute_force_on_each_of_two_pictures(name, radius):
    vlm = in_double(tiny_vlm(name))
    images, prompts = examples()
    images[2] = [picture(60, 40), images[2]]
    batch = vlm.encode(images, prompts, padding_side="left").named("abc")
    maps, expected = heatmaps(vlm, batch, radius=radius), brute_force(vlm, batch, radius=radius)
    first, second = (own.tokens for own in batch.pictures[2])
    assert first.stop == second.start and second.stop == expected.shape[1]
    for own in (first, second):
        assert_close(maps[2, :, own], expected[:, own], atol=1e-10, rtol=1e-9)
        assert expected[:, own].max() > 1e-4
    assert maps[2, :, second.stop :].isnan().all()


# --- attention that is more than a projection, attention and a projection


class GatedByPosition(torch.nn.Module):
    """Attention whose output every position scales by a gate of its own state."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, **kwargs):
        out, weights = self.inner(hidden_states, **kwargs)
        return out * hidden_states[..., :1].sigmoid(), weights


def test_gated_attention_is_computed_token_by_token_and_right(caplog):
    vlm = in_double(tiny_vlm("llava"))
    batch = encode(vlm).named("abc")
    heatmaps(vlm, batch)
    assert not caplog.records
    vlm.layers[1].self_attn = GatedByPosition(vlm.layers[1].self_attn)
    for radius in (0, 1):
        expected = brute_force(vlm, batch, radius=radius)
        maps = heatmaps(vlm, batch, radius=radius)
        expect_equal(maps, expected, atol=1e-10, rtol=1e-9)
    assert {record.args[0] for record in caplog.records} == {1}


# --- planted truths


def last_query(scores, values):
    """One query of one head whose keys have these scores and values."""
    keys = torch.tensor(scores)[None, None, :, None]
    q = torch.ones(1, 1, 1, 1, dtype=keys.dtype)
    v = torch.as_tensor(values, dtype=keys.dtype)[None, None]
    return LastQuery(q, keys, v, torch.zeros(1, 1, len(scores), dtype=keys.dtype), 1.0)


def swapped(query, scores, values):
    """Changes when each of the first keys gets another score and value, one by one and as sets."""
    at = torch.arange(len(scores))[None]
    k = torch.tensor(scores, dtype=query.k.dtype)[None, None, :, None]
    v = torch.as_tensor(values, dtype=query.k.dtype)[None, None]
    alone = torch.eye(len(scores), dtype=torch.bool)[None]
    return query.swap_each(at, k, v)[0, :, 0], query.swap_sets(at, k, v, alone)[0, :, 0]


def test_a_head_that_reads_one_token_depends_on_it_alone():
    query = last_query([0.0, 30.0, 0.0, 0.0], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    for change in swapped(query, [0.0, 30.0, 0.0], [[-1.0, 0.0]] * 3):
        assert change[1].norm() > 1 and change[[0, 2]].norm() < 1e-8


def test_tokens_that_gain_or_lose_all_attention_change_the_output_as_expected():
    values = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    query = last_query([0.0, 0.0, -200.0], values)
    for change in swapped(query, [200.0, -200.0], [[5.0, 5.0], [5.0, 5.0]]):
        expected = torch.tensor([[5.0, 5.0], [1.0, 0.0]]) - torch.tensor([0.5, 0.5])
        assert_close(change, expected)


def test_single_precision_is_enough_where_one_key_holds_nearly_all_attention():
    scores, values = [0.3, 40.0, -1.0, 0.7], torch.randn(4, 8, generator=torch.Generator()) + 5
    others, new = [0.1, 0.2, 0.4], torch.randn(3, 8)
    found = swapped(last_query(scores, values), others, new)
    exact = last_query(scores, values)
    exact = LastQuery(
        exact.q.double(), exact.k.double(), exact.v.double(), exact.bias.double(), 1.0
    )
    for change, truth in zip(found, swapped(exact, others, new), strict=True):
        assert_close(change[1].double(), truth[1], rtol=1e-5, atol=1e-6)


def test_tokens_beyond_a_sliding_window_are_not_read():
    vlm = tiny_vlm("gemma3")
    maps = heatmaps(vlm, encode(vlm, 1))[0]
    assert (maps[:3] == 0).all() and (maps[3] > 1e-4).all()  # the last layer has no window


def test_small_distances_keep_their_digits():
    a = torch.tensor([3.0, 4.0])
    for angle in (1e-5, 1e-3, 1.0, 3.0):
        turn = torch.tensor(angle, dtype=torch.float64)
        turned = torch.stack([3 * turn.cos() - 4 * turn.sin(), 3 * turn.sin() + 4 * turn.cos()])
        change = (turned - a.double()).float()
        expected = (torch.sin(turn / 2) ** 2).float()
        assert_close(half_cosine_distance(a, change), expected, rtol=1e-5, atol=0)
    assert half_cosine_distance(a, 0 * a) == 0 and half_cosine_distance(a, 2 * a).abs() < 1e-7


# --- noise and batches


@pytest.mark.parametrize("site", ["block", "attention"])
def test_without_noise_nothing_changes_at_all(vlm, batch, site):
    still, moved = (heatmaps(vlm, batch, noise=noise, site=site) for noise in (0.0, 1e-3))
    there = ~still.isnan()
    assert (still[there] == 0).all() and (moved[there] > 0).any()


def test_the_more_noise_the_larger_the_change(vlm, batch):
    small, large = (heatmaps(vlm, batch, noise=noise).nanmean() for noise in (0.1, 3.0))
    assert 10 * small < large


def test_maps_do_not_depend_on_the_batch_or_its_padding(different_vlm):
    images, prompts = examples(4)
    together = heatmaps(different_vlm, different_vlm.encode(images, prompts).named("abcd"))
    right = different_vlm.encode(images, prompts, padding_side="right").named("abcd")
    tolerance = {"atol": 1e-6, "rtol": 1e-3, "equal_nan": True}
    assert_close(heatmaps(different_vlm, right), together, **tolerance)
    one = different_vlm.encode(images[3:], prompts[3:]).named("d")
    alone = heatmaps(different_vlm, one)
    assert_close(alone[0], together[3, :, : alone.shape[2]], **tolerance)


def test_noise_belongs_to_example_seed_and_draw(vlm):
    batch = encode(vlm, 1)
    maps = {
        name: heatmaps(vlm, batch.named([example]), seed=seed, draws=draws)
        for name, (example, seed, draws) in {
            "first": ("a", 0, 1), "again": ("a", 0, 1), "other": ("b", 0, 1),
            "seed": ("a", 1, 1), "two": ("a", 0, 2),
        }.items()
    }  # fmt: skip
    assert torch.equal(maps["first"], maps["again"])
    for name in ("other", "seed", "two"):
        assert not torch.equal(maps["first"], maps[name])


def test_examples_without_an_image_are_nan_and_the_others_are_not(vlm, batch):
    maps = heatmaps(vlm, batch)
    assert maps.shape == (3, vlm.num_layers, int(batch["visual"].sum(1).max()))
    assert maps[1].isnan().all()
    assert maps[[0, 2]].isfinite().all() and 0 <= maps[[0, 2]].min() <= maps[[0, 2]].max() <= 1


def test_layers_come_in_the_order_wanted(vlm, batch):
    every = heatmaps(vlm, batch)
    some = heatmaps(vlm, batch, layers=[3, 1])
    assert_close(some, every[:, [3, 1]], equal_nan=True, atol=0, rtol=0)


def test_half_precision_keeps_values_below_its_rounding_of_outputs():
    exact = tiny_vlm("llava")
    half = VLM(copy.deepcopy(exact.model).bfloat16(), exact.processor, "half")
    single = VLM(copy.deepcopy(half.model).float(), exact.processor, "single")
    long = f"What is {'very ' * 60}red?"  # attention is spread thin
    maps, expected = (
        heatmaps(vlm, vlm.encode([picture()], [long]), layers=[0], noise=0.2)[0, 0]
        for vlm in (half, single)
    )
    assert expected.max() < 2e-6 < torch.finfo(torch.bfloat16).eps ** 2
    assert_close(maps, expected, rtol=0.1, atol=0)


def test_nan_weights_give_nan_maps(caplog):
    vlm = tiny_vlm("llava")
    broken = VLM(copy.deepcopy(vlm.model), vlm.processor, "broken")
    broken.layers[2].self_attn.v_proj.weight.fill_(torch.nan)
    maps = heatmaps(broken, encode(broken, 1))[0]
    assert maps[:2].isfinite().all() and maps[2:].isnan().all()
    assert not caplog.records


# --- one pass among others, and nothing left behind


def test_one_pass_serves_all_analyses(different_vlm):
    batch, last = encode(different_vlm), encode(different_vlm)["last"]
    everything = range(different_vlm.num_layers)
    with (
        heatmap_pass(different_vlm, batch, everything, Perturbation()) as maps,
        residual_writes(different_vlm, last) as writes,
        attention_rows(different_vlm, last) as rows,
    ):
        logits = different_vlm.logits(batch)
    assert torch.equal(logits, different_vlm.logits(batch))
    together = stack_maps(maps, everything, batch)
    assert_close(together, heatmaps(different_vlm, batch), equal_nan=True, atol=0, rtol=0)
    alone = last_writes(different_vlm, batch)
    assert torch.equal(writes.attn, alone.attn) and torch.equal(writes.mlp, alone.mlp)
    with attention_rows(different_vlm, last) as own:
        different_vlm.logits(batch)
    assert all(torch.equal(rows[layer], own[layer]) for layer in everything)


def test_maps_are_those_of_the_edited_model(vlm, batch):
    clean = heatmaps(vlm, batch)
    with write(vlm, 1, lambda h: h * 0.5, batch["visual"]):
        edited = heatmaps(vlm, batch)
    assert_close(edited[:, :2], clean[:, :2], equal_nan=True, atol=0, rtol=0)
    assert (edited[0, 2:] - clean[0, 2:]).abs().max() > 1e-4


def state(vlm):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    return hooks, [
        m.config._attn_implementation for m in vlm.model.modules() if hasattr(m, "config")
    ]


def test_the_model_is_restored_after_an_error(vlm, batch):
    before, logits = state(vlm), vlm.logits(batch)
    heatmaps(vlm, batch)
    assert state(vlm) == before and torch.equal(vlm.logits(batch), logits)
    with (
        pytest.raises(RuntimeError, match="stop"),
        heatmap_pass(vlm, batch, [0, 1], Perturbation()) as maps,
        write(vlm, 1, lambda _: (_ for _ in ()).throw(RuntimeError("stop")), batch["text"]),
    ):
        vlm.logits(batch)
    assert state(vlm) == before and list(maps) == [0]


def test_eager_models_give_the_same_maps(vlm, batch):
    expected = heatmaps(vlm, batch)
    eager = VLM(copy.deepcopy(vlm.model), vlm.processor, vlm.name)
    eager.model.set_attn_implementation("eager")
    assert_close(heatmaps(eager, batch), expected, equal_nan=True, atol=1e-6, rtol=1e-4)


# --- bad input


@pytest.mark.parametrize("wrong, message", [
    ({"layers": [0, 4]}, "layers 0 to 3"), ({"layers": [-1]}, "layers 0 to 3"),
    ({"layers": []}, "layers 0 to 3"), ({"noise": -1.0}, "noise"),
    ({"noise": float("nan")}, "noise"), ({"radius": -1}, "radius"), ({"draws": 0}, "draws"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(vlm, batch, wrong, message):
    with pytest.raises(AttribError, match=message):
        heatmaps(vlm, batch, **wrong)


@pytest.mark.parametrize("wrong", [{"unit": "sigma"}, {"site": "mlp"}])
def test_unknown_choices_are_refused(wrong):
    with pytest.raises(AttribError, match=r"sigma|mlp"):
        unwrap(Perturbation.__init__)(object.__new__(Perturbation), **wrong)


def test_text_alone_has_no_heatmap(vlm):
    with pytest.raises(AttribError, match="needs an image"):
        heatmaps(vlm, vlm.encode([None, None], ["Two and two is", "It is"]))


def test_queries_of_a_q_former_have_no_neighbours():
    vlm = tiny_vlm("blip2_opt")
    with pytest.raises(AttribError, match="use radius=0"):
        heatmaps(vlm, encode(vlm), radius=1)

"""Look-up among many edits: the decisions of scoring every edit, at the cost of a few."""

from typing import Any, cast

import pytest
import torch
from torch.nn.functional import normalize

from editors.adapters.lookup import KeyIndex, ScoreIndex, index_of, nearest
from editors.gating.classifier import PATCHES, GateNet
from editors.gating.features import GateReader
from editors.gating.gates import STATE, CosineGate, LearnedGate
from editors.gating.shortlist import ShortlistIndex
from editors.methods.serac_edit import VECTOR, ScopeGate
from editors.methods.serac_networks import Scope

NUM = 120
THRESHOLDS = (-torch.inf, 0.5, 0.9)  # quantiles of the best scores


def planted(generator, num=NUM, text_only=10):
    """Features of edits: some without an image, the last ones again as the first."""

    def unit(*shape):
        return normalize(torch.randn(*shape, generator=generator), dim=-1)

    made = [
        {
            "text_embedding": unit(64),
            "image_embedding": unit(64),
            PATCHES: unit(0 if i < text_only else 4 + i % 3, 32),
        }
        for i in range(num - 5)
    ]
    return made + [dict(one) for one in made[text_only - 2 : text_only + 3]]


def near(edits, generator, noise):
    """Queries: what is close to each edit."""
    return [
        {
            name: normalize(value + noise * torch.randn(value.shape, generator=generator), dim=-1)
            for name, value in one.items()
        }
        for one in edits
    ]


def learned(threshold=0.0, shortlist=8, sharp=True):
    """A gate with random weights; if `sharp`, one that knows pairs by their cosines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GateNet.for_reader(reader := GateReader([0], 32, 0)).eval()
    if sharp:
        into, out = (cast("Any", net.judge[i]) for i in (0, -1))
        with torch.no_grad():
            into.weight[0], into.bias[0] = 0.0, -1.5
            into.weight[0, [2 * 64, 4 * 64 + 1]] = 2.0  # the cosines of text and image
            out.weight[0, 0] = 40.0
    return LearnedGate(reader, net, threshold, shortlist=shortlist)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    edits = planted(generator)
    return edits, [*near(edits[::4], generator, 0.02), *near(edits[::9], generator, 0.3)]


@pytest.mark.parametrize("sharp", [True, False])
@pytest.mark.parametrize("shortlist", [1, 8, 1000])
@pytest.mark.parametrize("quantile", THRESHOLDS)
def test_a_shortlist_decides_as_scoring_every_edit(inputs, sharp, shortlist, quantile):
    edits, queries = inputs
    gate = learned(shortlist=shortlist, sharp=sharp)
    scores = gate.scores(queries, edits)
    threshold = quantile if quantile < 0 else float(scores.max(1).values.quantile(quantile))
    gate = LearnedGate(gate.reader, gate.net, threshold, shortlist=shortlist)
    found, wanted = index_of(gate, edits).nearest(queries), nearest(gate, queries, edits)
    assert torch.equal(found, wanted)
    assert (found >= 0).any() and ((found < 0).any() or quantile < 0)  # both decisions occur


def test_bounds_hold_for_every_pair_and_are_tight_enough_to_score_few(inputs, monkeypatch):
    edits, queries = inputs
    gate, scored = learned(threshold=10.0), []
    index = index_of(gate, edits)
    assert isinstance(index, ShortlistIndex)
    encoded = index.keys
    with torch.no_grad():
        scores = gate.scores(queries, edits)
        for i, query in enumerate(queries):
            seen = len(query[PATCHES]) > 0
            whole = torch.cat([query["text_embedding"], query["image_embedding"]])
            whole = whole if seen else whole[:64]
            bound = index.bounds(whole, encoded[:, : len(whole)], seen)
            same = index.seen == seen
            assert (bound >= scores[i])[same].all() and (bound < scores[i] + 60)[same].all()
    compare = GateNet.compare

    def counted(net, one, other):
        scored.append(len(one.count))
        return compare(net, one, other)

    monkeypatch.setattr(GateNet, "compare", counted)
    wanted = nearest(gate, queries, edits)
    every, scored[:] = sum(scored), []
    assert torch.equal(index.nearest(queries), wanted)
    assert 0 < sum(scored) < 0.1 * every == 0.1 * len(queries) * len(edits)
    assert index.num_bytes == NUM * 2 * 64 * 4


def test_keys_of_cosine_and_scope_gates_are_one_exact_product():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 16, generator=generator)
    queries = states[:20] + 0.1 * torch.randn(20, 16, generator=generator)
    scope = ScopeGate(Scope(8, 16, 1, 2), 0, 1.5)
    for gate, name in ((CosineGate(0, 0.9), STATE), (scope, VECTOR)):
        held = [{name: one} for one in [*states, *states[:10]]]
        asked = [{name: one} for one in queries]
        index = index_of(gate, held)
        assert isinstance(index, KeyIndex) and index.num_bytes == 60 * 16 * 4
        found = index.nearest(asked)
        assert torch.equal(found, nearest(gate, asked, held))
        assert (found[:10] >= 50).all()  # the newest of equals
    assert isinstance(index_of(scope, []), ScoreIndex)
    assert index_of(scope, []).nearest(asked).tolist() == [-1] * 20

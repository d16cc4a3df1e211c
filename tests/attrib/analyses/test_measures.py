"""Measures: tables say which key they are about, and agree with the analyses behind them."""

import numpy as np
import pytest
from conftest import picture, tiny_vlm

from attrib.analyses.attention import attention, measure_attention, profile
from attrib.analyses.contributions import contributions, measure_contributions, measure_demo
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def sample(i, **others):
    request = EditRequest(picture(seed=i), f"What is {'very ' * i}it?", ["red", "blue"][i % 2])
    return EditSample(f"e{i}", request, **others)


def about(target):
    """An unrelated question with this answer."""
    return [EditRequest(None, "Who?", target)]


@pytest.fixture(scope="module")
def samples():
    return [sample(i, visual_locality=about("yes"), text_locality=about("Emma")) for i in range(3)]


@pytest.fixture(scope="module")
def batch(vlm, samples):
    return vlm.encode([s.request.image for s in samples], [s.request.prompt for s in samples])


def keys(table):
    return table.groupby("example", sort=False)["key"].first().tolist()


@pytest.mark.parametrize("norm", ["none", "frozen"])
def test_the_table_holds_the_contributions(vlm, batch, samples, norm):
    table = measure_contributions(vlm, batch, samples, key="argmax", norm=norm)["contributions"]
    values = contributions(vlm, batch, norm=norm)
    assert np.allclose(table["value"], values.flatten().numpy())
    assert list(table.columns) == [
        "example", "layer", "module", "value", "logit", "probability", "key",
    ]  # fmt: skip
    one = table[(table["example"] == "e1") & (table["layer"] == 2) & (table["module"] == "mlp")]
    assert np.isclose(one["value"].item(), values[1, 2, 1])


def test_the_table_holds_the_attention_profile(vlm, batch, samples):
    table = measure_attention(vlm, batch, samples)["attention"]
    values = profile(attention(vlm, batch), batch)
    assert np.allclose(table["value"], values.flatten().numpy())


def test_keys_are_the_chosen_tokens(vlm, batch, samples):
    def keys_of(key):
        return keys(
            measure_contributions(vlm, batch, samples, key=key, norm="none")["contributions"]
        )

    first = {
        word: vlm.tokenizer.decode([vlm.answer_token(word)]) for word in ("red", "blue", "yes")
    }
    assert keys_of("gold") == [first["red"], first["blue"], first["red"]]
    assert keys_of("token:yes") == [first["yes"]] * 3
    assert keys_of("argmax") != keys_of("gold")


def test_the_wrong_key_is_an_unrelated_answer_that_the_model_does_not_give(vlm, batch, samples):
    said = [vlm.tokenizer.decode([t]) for t in vlm.logits(batch)[batch["last"]].argmax(-1)]
    table = measure_contributions(vlm, batch, samples, key="wrong", norm="none")["contributions"]
    assert all(wrong != right for wrong, right in zip(keys(table), said, strict=True))


def test_a_sample_without_a_wrong_answer_is_missing_from_the_control_only(vlm, batch, samples):
    some = [samples[0], sample(1), samples[2]]
    tables = measure_demo(vlm, batch, some, norm="none", truth=lambda s: s.request.target)
    assert set(tables["wrong_key"]["example"]) == {"e0", "e2"}
    assert set(tables["contributions"]["example"]) == {"e0", "e1", "e2"}


def test_the_demo_tables_equal_the_single_analyses(vlm, batch, samples):
    tables = measure_demo(vlm, batch, samples, norm="none", truth=lambda _: "x")
    for key, name in (("argmax", "contributions"), ("wrong", "wrong_key")):
        alone = measure_contributions(vlm, batch, samples, key=key, norm="none")["contributions"]
        assert tables[name].equals(alone)
    assert tables["attention"].equals(measure_attention(vlm, batch, samples)["attention"])
    assert tables["answers"]["answer"].tolist() == vlm.generate(batch, max_new_tokens=12)


def test_answers_are_compared_with_the_truth(vlm, batch, samples):
    said = dict(zip([s.id for s in samples], vlm.generate(batch, max_new_tokens=12), strict=True))

    def truth(sample):
        return said[sample.id].upper() if sample.id != "e1" else "something else"

    tables = measure_demo(vlm, batch, samples, norm="none", truth=truth)
    assert tables["answers"]["value"].tolist() == [1, 0, 1]


def test_unknown_and_missing_keys_are_refused(vlm, batch, samples):
    for key in ("nonsense", "token:"):
        with pytest.raises(AttribError, match="expected argmax, gold, wrong or token:WORD"):
            measure_contributions(vlm, batch, samples, key=key, norm="none")
    bare = [EditSample(s.id, EditRequest(None, "x", "")) for s in samples]
    with pytest.raises(AttribError, match="has no target: use --key argmax"):
        measure_contributions(vlm, batch, bare, key="gold", norm="none")

"""Models of the published sizes: exact shapes, shards within their limit, steps run once."""

import json
import math
from functools import wraps

import pytest
import torch
from safetensors.torch import load_file

import attrib
from attrib.checks.inputs import CheckFailed
from benchmarks import float32_linear, full_size
from benchmarks.official import SHAPES, TINY, official
from benchmarks.random_checkpoint import weight_shapes, write_checkpoint
from benchmarks.steps import Steps

# As their pages on the Hugging Face hub count them.
PARAMETERS = {"llava-1.5-7b": 7_063_427_072, "blip2-opt-2.7b": 3_744_761_856}


@pytest.mark.parametrize("shape", PARAMETERS)
def test_the_shapes_are_the_published_ones(shape):
    shapes = weight_shapes(official(shape)[0])
    assert sum(map(math.prod, shapes.values())) == PARAMETERS[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sharded_checkpoint_loads_complete(shape, tmp_path):
    limit = 300_000
    total = write_checkpoint(*official(shape, TINY), tmp_path, seed=1, shard_bytes=limit)
    shards = [load_file(file) for file in sorted(tmp_path.glob("model-*.safetensors"))]
    sizes = [sum(w.numel() * w.element_size() for w in shard.values()) for shard in shards]
    assert len(shards) > 2 and max(sizes) <= limit and sum(sizes) == total
    vlm = attrib.load(str(tmp_path), dtype="bfloat16")  # complete and verified
    stored = {w.float().sum().item() for shard in shards for w in shard.values()}
    assert {w.float().sum().item() for w in vlm.model.parameters()} <= stored


def test_weights_depend_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_checkpoint(*official("llava-1.5-7b", TINY), tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model-00001.safetensors") for name in "abc")
    key = "language_model.lm_head.weight"  # the name in published checkpoints
    assert torch.equal(a[key], b[key]) and not torch.equal(a[key], c[key])


def _failing(check):
    @wraps(check)
    def failing(_):
        raise CheckFailed(f"{check.__name__} ran again")

    return failing


def test_every_step_runs_and_is_not_run_again(tmp_path, monkeypatch):
    given = ["--tiny", "--in-process", "--folder", str(tmp_path / "model"), "--out", str(tmp_path)]

    def run():
        with pytest.raises(SystemExit) as left:
            full_size.main(given)
        return left.value.code, (tmp_path / "full-size-llava-1.5-7b-tiny.json").read_text()

    code, text = run()
    rows = {row["step"]: row for row in json.loads(text)["rows"]}
    assert not code and list(rows) == list(full_size.FullSize("", tmp_path).steps)
    assert all(row["seconds"] > 0 and row["peak MiB"] > row["weights MiB"] for row in rows.values())
    assert rows["sweep"]["layers"] == [0, 1, 2, 3] and rows["check"]["machine"]["cores"]
    passed = json.loads((tmp_path / "model" / full_size.PASSED).read_text())
    assert len(passed) == rows["check"]["checks"] == len(full_size.CHECKS)
    bench = full_size.FullSize("llava-1.5-7b", tmp_path / "model", tiny=True)
    with monkeypatch.context() as p:  # what passed is not run again
        p.setattr(full_size, "CHECKS", [_failing(one) for one in full_size.CHECKS])
        assert bench.check() == {k: rows["check"][k] for k in bench.check()}
        (tmp_path / "model" / full_size.PASSED).unlink()
        assert bench.check()["failed"].count("ran again") == len(full_size.CHECKS)
    monkeypatch.setattr(full_size.FullSize, "run", lambda *_: pytest.fail("ran again"))
    assert run() == (0, text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_float32_are_rounded_once_and_differentiable(dtype, monkeypatch):
    monkeypatch.setattr(float32_linear, "ROWS", 3)  # several pieces, the last one smaller
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, generator=generator).to(dtype).requires_grad_()
    layer = torch.nn.Linear(5, 7, dtype=dtype).requires_grad_(False)
    wide = (x.float() @ layer.weight.float().T).to(dtype) + layer.bias
    with float32_linear.float32_linear():
        out = layer(x)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
    expected = ((2 * out.float()).to(dtype).float() @ layer.weight.float()).to(dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(out, wide)
    torch.testing.assert_close(gradient, expected)
    assert torch.nn.functional.linear is float32_linear._linear


def test_a_failed_step_is_listed_and_tried_again(tmp_path):
    calls = []

    def run(name):
        calls.append(name)
        if calls == ["a"]:
            raise MemoryError("14 GB")
        return {"value": 1}

    steps = Steps(tmp_path / "rows.json", {"shape": "x"}, run)
    assert not steps.all(["a", "b"]) and steps.rows["a"]["failed"] == "MemoryError: 14 GB"
    assert steps.all(["a", "b"]) and calls == ["a", "b", "a"]
    assert steps.rows["a"]["value"] == 1

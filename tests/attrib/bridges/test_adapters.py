"""What users of TransformerLens get by installing this package, and what importing it does not."""

import ast
import logging
import sys
import tomllib
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import transformers as tr
from bridged import assert_near
from conftest import examples, tiny_vlm
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources.transformers import helpers

from attrib.bridges import _restored_logging
from attrib.bridges.adapters import ARCHITECTURES, VisionLanguageAdapter, shared_copy
from attrib.errors import SetupError

ROOT = Path(__file__).parents[3]
GROUP = "transformer_lens.architectures"
ADAPTER = "attrib.bridges.adapters:VisionLanguageAdapter"
OURS = ("blip2_opt", "qwen2_vl", "paligemma")


def test_the_package_declares_an_entry_point_for_each_architecture():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GROUP] == dict.fromkeys(ARCHITECTURES, ADAPTER)


def test_transformer_lens_discovers_them(monkeypatch):
    if not entry_points(group=GROUP):
        pytest.skip("this package is not installed, or was before it had entry points")
    native = dict(ArchitectureAdapterFactory._adapters)
    for name in ARCHITECTURES:
        native.pop(name, None)
    monkeypatch.setattr(ArchitectureAdapterFactory, "_adapters", native)
    monkeypatch.setattr(ArchitectureAdapterFactory, "_entry_points_discovered", False)
    ArchitectureAdapterFactory.discover_entry_points()
    for name in ARCHITECTURES:
        assert ArchitectureAdapterFactory._adapters[name] is VisionLanguageAdapter


@pytest.mark.parametrize("name", OURS)
def test_its_own_builder_boots_models_that_it_lacks(name):
    vlm = tiny_vlm(name)
    model = shared_copy(vlm.model)
    assert type(model).__name__ in ARCHITECTURES
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    batch = vlm.encode(*examples())
    inputs = dict(batch.inputs)
    with torch.no_grad():
        logits = bridge(inputs.pop("input_ids"), **inputs)
        assert_near(logits[batch["last"]], vlm.logits(batch)[batch["last"]])


def test_a_checkpoint_boots_by_its_name(tmp_path, monkeypatch):
    # Were the processor not to load, TransformerLens would run pip.
    monkeypatch.setattr(helpers, "_ensure_torchvision", lambda: pytest.fail("would run pip"))
    vlm = tiny_vlm("blip2_opt")
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert isinstance(bridge.original_model, tr.Blip2ForConditionalGeneration)
    batch = vlm.encode(*examples(1))
    inputs = dict(batch.inputs)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
        assert_near(logits, vlm.logits(batch))
    assert cache["vision_encoder.hook_out"].shape == (1, 5, 48)
    assert cache["qformer.hook_out"].shape == (1, 6, 32)
    assert cache["vision_projector.hook_out"].shape == (1, 6, 64)


def test_pixels_may_still_come_first():
    model = tiny_vlm("blip2_opt").to_bridge().original_model
    inputs = dict(tiny_vlm("blip2_opt").encode(*examples(1)).inputs)
    ids, pixels = inputs.pop("input_ids"), inputs.pop("pixel_values")
    with torch.no_grad():
        by_name = model(input_ids=ids, pixel_values=pixels, **inputs).logits
        assert torch.equal(model(pixels, ids, **inputs).logits, by_name)
        assert torch.equal(model(ids, pixel_values=pixels, **inputs).logits, by_name)


def test_an_encoder_decoder_is_refused():
    blip, text = tiny_vlm("blip2_opt").model.config, {"vocab_size": 300, "d_model": 32}
    text |= {"model_type": "t5", "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16}
    config = tr.Blip2Config(
        vision_config=blip.vision_config, qformer_config=blip.qformer_config, text_config=text
    )
    model = tr.Blip2ForConditionalGeneration(config)
    with pytest.raises(SetupError, match="encoder-decoder"):
        build_bridge_from_module(model, type(model).__name__, hf_config=config)


def imported(nodes):
    """Names of the modules that import statements among `nodes` name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_transformer_lens_is_imported_by_the_bridges_alone_and_they_only_inside_functions():
    for file in sorted((ROOT / "attrib").rglob("*.py")):
        tree = ast.parse(file.read_text())
        if "bridges" in file.parts:
            continue
        assert not any(name.startswith("transformer_lens") for name in imported(ast.walk(tree)))
        assert not any(name.startswith("attrib.bridges") for name in imported(tree.body)), file


def test_importing_leaves_warnings_and_the_log_of_transformers_as_they_were():
    log = logging.getLogger("transformers")
    level, filters = log.level, list(warnings.filters)
    with _restored_logging():
        warnings.filterwarnings("ignore", message="anything")
        log.setLevel(level + 10)
        warnings.warn("not shown", stacklevel=1)
    assert log.level == level
    assert warnings.filters == filters


def test_no_experiment_tracker_was_started():
    assert getattr(sys.modules.get("wandb"), "run", None) is None

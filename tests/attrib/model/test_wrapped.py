"""Models in wrappers: numbers are those of the model within, adapters included."""

import copy
import json
import shutil
import sys
from contextlib import nullcontext
from itertools import pairwise

import peft
import pytest
import tiny_models
import torch
from conftest import FAMILIES, examples, tiny_vlm
from torch.testing import assert_close

import attrib
from attrib.checks import check, verify
from attrib.errors import SetupError
from attrib.forward.hooks import read, write
from attrib.forward.replay import capture, logits_from
from attrib.forward.residual import residual_writes
from attrib.model import weight_files
from attrib.model.adapters import with_adapter
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from attrib.model.wrapped import is_packed
from editors.methods.finetune import FTL, FTV
from editors.methods.lte_objective import AllLayers
from editors.weights.components import matrices_of, mlp_of

# peft asks transformers in a way that it deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning"),
]
TARGETS = r".*\.(q_proj|v_proj|fc1|fc2|up_proj|down_proj)"


def adapted(name="blip2_opt", config=peft.LoraConfig, seed=0, **settings):
    """A tiny model in peft's wrapper, with random adapters, and its processor."""
    model, processor = tiny_models.build(name)
    torch.manual_seed(seed)
    if config is peft.LoraConfig:
        settings = {"init_lora_weights": False, "target_modules": TARGETS} | settings
    return peft.get_peft_model(model, config(**settings)).eval(), processor


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_with_adapters_has_the_numbers_of_the_merged_one(name):
    model, processor = adapted(name, use_dora=name == "llava")
    vlm = VLM(model, processor)
    merged = VLM(copy.deepcopy(model).merge_and_unload(), processor)
    assert vlm.model is model.get_base_model() is VLM(model.base_model, processor).model
    batch = vlm.encode(*examples())
    text = vlm.encode([None], ["nq question: who?"])  # BLIP's forward asks for pixels
    with torch.no_grad(), residual_writes(vlm, batch["last"]) as ours:
        logits = vlm.logits(batch)
    with torch.no_grad(), residual_writes(merged, batch["last"]) as theirs:
        assert_close(merged.logits(batch), logits, atol=1e-4, rtol=1e-4)
        assert_close(theirs.mlp, ours.mlp, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert_close(merged.last_logits(text), vlm.last_logits(text), atol=1e-4, rtol=1e-4)
    changed = []
    for one in (vlm, merged):
        with torch.no_grad(), write(one, 1, lambda h: 0 * h, at=batch["text"]):
            changed.append(one.last_logits(batch))
    assert_close(*changed, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(changed[0], logits[batch["last"]], atol=1e-2)
    with model.disable_adapter(), torch.no_grad():
        plain = VLM(tiny_models.build(name)[0], processor).logits(batch)
        assert torch.equal(vlm.logits(batch), plain)
        assert not torch.allclose(logits, plain, atol=1e-2)


def test_a_model_with_adapters_passes_all_checks():
    report = check(VLM(*adapted("blip2_llama")))
    assert report.passed, report


def test_another_active_adapter_is_another_model():
    model, processor = adapted()
    model.add_adapter("other", peft.LoraConfig(init_lora_weights=False, target_modules=TARGETS))
    vlm = VLM(model.eval(), processor)
    batch = vlm.encode(*examples())
    seen, prints = [], set()
    for switch in (
        lambda: model.set_adapter("default"),
        lambda: model.set_adapter("other"),
        lambda: model.base_model.set_adapter(["default", "other"]),
        lambda: model.base_model.disable_adapter_layers(),
    ):
        switch()
        prints.add(fingerprint(vlm))
        with torch.no_grad():
            seen.append(vlm.last_logits(batch))
            assert torch.equal(vlm.logits(batch)[batch["last"]], seen[-1])
    assert len(prints) == 4
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(seen))
    assert fingerprint(VLM(*tiny_models.build("blip2_opt"))) not in prints


@torch.no_grad()
def test_an_output_embedding_that_was_trained_whole_is_the_one_in_use():
    model, processor = adapted("llava", modules_to_save=["lm_head"])
    vlm = VLM(model, processor)
    saved = vlm.model.lm_head.modules_to_save["default"]
    saved.weight.data += torch.randn(saved.weight.shape) / 4
    assert vlm.components.head is saved
    heads = []
    for state in (nullcontext, model.disable_adapter, nullcontext):
        with state():
            verify(vlm)
            heads.append(vlm.components.head)
    assert heads == [saved, vlm.model.lm_head.original_module, saved]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "output embedding has an adapter .*merge_and"),
        ({"config": peft.PromptTuningConfig, "num_virtual_tokens": 3}, "PROMPT_TUNING, which puts"),
        ({"config": peft.PrefixTuningConfig, "num_virtual_tokens": 3}, "PREFIX_TUNING, which puts"),
        ({"config": peft.PromptEncoderConfig, "num_virtual_tokens": 3}, "P_TUNING, which puts"),
    ],
)
def test_adapters_outside_the_layers_are_refused_by_name(settings, message):
    if "config" in settings:
        sizes = {"num_layers": 4, "token_dim": 64, "num_attention_heads": 4}
        settings = {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1} | sizes | settings
    with pytest.raises(SetupError, match=message):
        VLM(*adapted("llava", **settings))


def test_active_dropout_is_refused():
    model, processor = adapted("llava", lora_dropout=0.5)
    assert VLM(model, processor).num_layers == 4
    with pytest.raises(SetupError, match=r"lora_dropout.default is active.*call model.eval\(\)"):
        VLM(model.train(), processor)


# --- torch.compile


class Compiled(Exception):
    pass


def compiler(*_):
    raise Compiled  # whoever runs this runs code that calls no hooks


def compiled_whole(model):
    return torch.compile(model, backend=compiler)


def compiled_in_place(model):
    model.compile(backend=compiler)
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend=compiler)
    return model


def compiled_parts(model):
    text = model.model.language_model
    for i in (0, 2):
        text.layers[i] = torch.compile(text.layers[i], backend=compiler)
    text.layers[1].compile(backend=compiler)
    text.layers[3].mlp = torch.compile(text.layers[3].mlp, backend=compiler)
    model.lm_head = torch.compile(model.lm_head, backend=compiler)
    model.model.vision_tower = torch.compile(model.model.vision_tower, backend=compiler)
    return model


@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.parametrize(
    "compiled", [compiled_whole, compiled_in_place, compiled_forward, compiled_parts]
)
@torch.no_grad()
def test_nothing_runs_compiled_and_every_hook_is_called(compiled):
    plain = VLM(*tiny_models.build("llava"))  # saving a model, as others do, changes its config
    model, processor = tiny_models.build("llava")
    given = compiled(model)
    vlm, modules = VLM(given, processor), list(given.modules())
    batch = plain.encode(*examples())
    changed = []
    for one in (vlm, plain):
        with write(one, 0, lambda h: -h, batch["text"]), capture(one) as captured:
            logits = one.logits(batch)
            with read(one) as hidden:
                one.last_logits(batch)
        again = logits_from(one, captured, 1, hidden[1])
        changed.append((logits, again, *hidden.values()))
    assert all(torch.equal(*pair) for pair in zip(*changed, strict=True))
    assert torch.equal(logits, again) and not torch.equal(logits, plain.logits(batch))
    assert vlm.generate(batch, 3) == plain.generate(batch, 3)
    assert fingerprint(vlm) == fingerprint(plain)
    assert [id(m) for m in given.modules()] == [id(m) for m in modules]  # is left compiled
    with pytest.raises(Exception, match="Compiled"):  # outside, it would
        torch.compile(lambda x: x + 1, backend=compiler)(batch["text"].float())


# --- folders of adapters


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base model and its adapter, and the model with the adapter in it."""
    folder = tmp_path_factory.mktemp("made")
    model, processor = tiny_models.build("blip2_opt")
    for part in (model, processor):
        part.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(init_lora_weights=False, target_modules=TARGETS)
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(folder / "adapter")
    return folder, VLM(wrapped, processor)


@pytest.fixture
def saved(made, tmp_path):
    """A folder with an adapter beside its base model, and a function that changes its config."""
    folder, wrapped = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def change(**settings):
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return tmp_path / "adapter", wrapped, change


def test_a_folder_with_an_adapter_loads_with_its_base(saved, monkeypatch):
    (folder, wrapped, change), prints = saved, set()
    for base in (str(folder.parent / "base"), "../base"):
        change(base_model_name_or_path=base)
        vlm = attrib.load(str(folder))
        batch = vlm.encode(*examples())
        assert_close(vlm.logits(batch), wrapped.logits(batch), atol=1e-5, rtol=1e-5)
        assert not any(weight.requires_grad for weight in vlm.model.parameters())
        prints.add(fingerprint(vlm))
    assert len(prints) == 1
    offloaded = copy.deepcopy(vlm.model).to("meta")
    with pytest.raises(SetupError, match="cannot be put into a model that is offloaded"):
        with_adapter(offloaded, folder, "it", complete=True)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SetupError, match=r"need the package peft, .*; pip install peft"):
        attrib.load(str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": "./nowhere"}, "names the base model './nowhere', neither"),
        ({"base_model_name_or_path": None}, "names the base model None, neither"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "PREFIX_TUNING, which puts"),
        ({"peft_type": "NOVEL"}, "does not fit its base model: .*NOVEL"),
        ({"target_modules": ["no_proj"]}, "does not fit its base model: .*no_proj"),
        ({"r": 4}, "does not fit its base model: .*size mismatch"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]}, "lacks weights"),
    ],
)
def test_adapters_that_cannot_be_used_are_named(saved, settings, message):
    folder, _, change = saved
    change(**settings)
    with pytest.raises(SetupError, match=f"{folder}: .*{message}"):
        attrib.load(str(folder))


def test_an_adapter_in_a_pickle_is_refused(saved):
    folder, _, _ = saved
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SetupError, match=r"has no adapter_model.safetensors; .*safe_serialization"):
        attrib.load(str(folder))


# --- packed weights


@pytest.mark.parametrize("name", ["gptq", "awq", "hqq", "torchao", "quanto", "compressed-tensors",
                                  "bitsandbytes", "foo", None, "old", "inner"])  # fmt: skip
def test_a_quantised_checkpoint_says_what_it_needs(name, tmp_path, monkeypatch, run):
    config, processor = tiny_vlm("llava").model.config.to_dict(), tiny_vlm("llava").processor
    packages = {"hqq": "hqq", "quanto": "optimum-quanto", "gptq": "optimum gptqmodel",
                "awq": "gptqmodel"}  # fmt: skip
    message = f"pip install {packages.get(name, name)}"
    how = {"quant_method": name}
    if name in ("old", "inner"):
        how, message = {"load_in_8bit": True}, "pip install bitsandbytes"
    elif name in ("foo", None):
        message = f"by the method {name!r}, unknown"
    config |= {"quantization_config": how}
    if name == "inner":
        config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(weight_files, "_is_installed", lambda _: False)
    code, _, err = run("models", "check", tmp_path)
    assert code == 3 and message in " ".join(err.split()) and "Traceback" not in err, err


class Packed(torch.Tensor):
    """A weight of a package that quantises: it says float32, and holds integers."""


def packed(model, kind):
    for layer in model.model.language_model.layers:
        down = layer.mlp.down_proj
        if kind == "integers":
            weight = torch.zeros(down.weight.shape, dtype=torch.uint8)
            down.weight = torch.nn.Parameter(weight, requires_grad=False)
            down.forward = lambda x, d=down: x.new_zeros(*x.shape[:-1], d.out_features)
        else:
            weight = down.weight.data.as_subclass(Packed)
            down.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize("kind", ["integers", "subclass"])
@torch.no_grad()
def test_packed_weights_run_and_are_not_edited(kind, tmp_path):
    model, processor = tiny_models.build("llava")
    vlm = VLM(packed(model, kind), processor)
    verify(vlm)
    assert vlm.dtype == torch.float32
    assert len(fingerprint(vlm)) == 64 and is_packed(vlm.layers[0].mlp.down_proj)
    for refused in (lambda: FTL.train(vlm, out=tmp_path), lambda: matrices_of(vlm, [2], "all"),
                    lambda: AllLayers(vlm, [2])):  # fmt: skip
        with pytest.raises(SetupError, match=r"down_proj.* quantised .*visedit"):
            refused()
    assert mlp_of(vlm, 1).down.module is vlm.layers[1].mlp.down_proj  # where neurons are added
    assert FTV.train(vlm, out=tmp_path).layers == []  # the projector is not quantised
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.as_subclass(Packed))
    with pytest.raises(SetupError, match="the output embedding is quantised"):
        VLM(model, processor)

"""What can be loaded is, through one door; what cannot is refused in one line."""

import json

import pytest
import tiny_models
import torch
import transformers as tr
from conftest import FAMILIES, examples, picture, tiny_vlm
from safetensors.torch import save_file
from torch.testing import assert_close

import attrib
from attrib import files
from attrib.checks import check, checks
from attrib.errors import SetupError
from attrib.model import checkpoint as loading


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Saved models by name, each written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(name):
        if not (root / name).exists():
            save(*tiny_models.build(name), root / name)
        return root / name

    return folder


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [*FAMILIES, "qwen2_vl"])
def test_a_saved_model_loads_as_it_was(name, folders):
    vlm, original = attrib.load(str(folders(name))), tiny_vlm(name)
    batch = vlm.encode(*examples(), targets=["cat"] * 3)
    theirs = original.encode(*examples(), targets=["cat"] * 3)
    assert batch.grids == theirs.grids
    assert torch.equal(batch.inputs["input_ids"], theirs.inputs["input_ids"])
    assert torch.equal(batch.inputs["pixel_values"], theirs.inputs["pixel_values"])
    assert_close(vlm.logits(batch), original.logits(theirs))
    assert not vlm.model.training
    assert not any(weight.requires_grad for weight in vlm.model.parameters())
    assert vlm.name == str(folders(name))
    assert type(vlm.processor.image_processor).__name__.endswith("Pil")


# The official configurations but for depth, width and vocabulary.
OFFICIAL_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "patch_size": 14}  # fmt: skip


def _llava_1_5_7b():
    config = tr.LlavaConfig(
        vision_config=tr.CLIPVisionConfig(image_size=336, projection_dim=768, **OFFICIAL_VISION),
        text_config=tiny_models.llama(num_hidden_layers=2, max_position_embeddings=4096),
        image_token_index=tiny_models.IMAGE, projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=576,
    )  # fmt: skip
    images = tr.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    processor = tr.LlavaProcessor(
        images, tiny_models.tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tr.LlavaForConditionalGeneration(config), processor


def _blip2(text, bos):
    qformer = {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32,
               "num_attention_heads": 2, "encoder_hidden_size": 32}  # fmt: skip
    config = tr.Blip2Config(
        vision_config={"image_size": 224, **OFFICIAL_VISION}, qformer_config=qformer,
        text_config=text.to_dict(), num_query_tokens=32, image_token_index=tiny_models.IMAGE,
    )  # fmt: skip
    images = tr.BlipImageProcessorPil(size={"height": 224, "width": 224})
    processor = tr.Blip2Processor(images, tiny_models.tokenizer(bos), num_query_tokens=32)
    return tr.Blip2ForConditionalGeneration(config), processor


OFFICIAL = {
    "llava-1.5-7b": (_llava_1_5_7b, 576, "text"),
    "blip2-opt-2.7b": (lambda: _blip2(tiny_models.opt(num_hidden_layers=2), "</s>"), 32, "bos"),
    "minigpt4": (lambda: _blip2(tiny_models.llama(num_hidden_layers=2), "<s>"), 32, "bos"),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_configurations_load_through_the_same_door(name, tmp_path):
    build, num_visual, after = OFFICIAL[name]
    torch.manual_seed(0)
    vlm = attrib.load(str(save(*build(), tmp_path)))
    batch = vlm.encode([picture(640, 480)], ["What is on the table? The answer is:"], ["cheese"])
    visual = batch["visual"][0].nonzero()[:, 0]
    assert visual.tolist() == list(range(visual[0], visual[0] + num_visual))
    assert batch[after][0, visual[-1] + 1]
    if name == "llava-1.5-7b":
        grid = batch.grids[0]
        assert (grid.rows, grid.cols) == (24, 24)
        assert grid.box == pytest.approx((80, 0, 560, 480), abs=0.5)
    else:
        assert batch.grids == (None,)
    assert vlm.logits(batch).isfinite().all()


def test_embedded_names_are_folders_of_the_package(folders, monkeypatch, tmp_path):
    (tmp_path / "tiny-llava").symlink_to(folders("llava"))
    for module in (files, loading):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    assert loading.embedded_names() == ["tiny-llava"]
    assert attrib.load("tiny-llava", verify=False).name == "tiny-llava"
    with pytest.raises(SetupError, match=r"unknown model 'tiny-lava': .* \(tiny-llava\), a folder"):
        attrib.load("tiny-lava")


def test_the_dtype_is_float32_on_a_cpu_unless_told_otherwise(folders):
    assert attrib.load(str(folders("blip2_opt")), verify=False).model.dtype == torch.float32
    vlm = attrib.load(str(folders("llava")), dtype="bfloat16")  # verified in bfloat16
    assert vlm.model.dtype == torch.bfloat16


# --- refusals


def test_what_cannot_be_loaded_says_why(tmp_path, folders):
    def refused(**settings):
        with pytest.raises(SetupError) as caught:
            attrib.load(**{"name": str(tmp_path)} | settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "the folder has no config.json" in refused()
    assert "unknown model './nowhere'" in refused(name="./nowhere")
    assert "org/name: cannot read its config.json: it is not in the local cache" in refused(
        name="org/name"
    )
    assert "dtype 'float8': expected one of auto, float32" in refused(dtype="float8")
    assert "device 'warp' cannot be used here" in refused(device="warp")
    assert "only with a pinned --revision" in refused(name="org/name", trust_remote_code=True)

    tiny_vlm("llava").model.config.save_pretrained(tmp_path)
    assert "has no *.safetensors" in refused()
    (tmp_path / "model.safetensors").touch()
    assert "cannot load its processor: " in refused()

    def config(**changes):
        written = json.loads((folders("llava") / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(written))

    config(model_type="seeing", auto_map={"AutoConfig": "seeing.Config"})
    told = refused()
    assert "pass --trust-remote-code and pin --revision" in told
    config(model_type="seeing")
    assert "no model_type 'seeing'; update it" in refused()
    tr.LlamaConfig().save_pretrained(tmp_path)
    assert "llama is not an image-text-to-text model" in refused()
    tr.Blip2Config(text_config=tr.T5Config().to_dict()).save_pretrained(tmp_path)
    assert "is an encoder-decoder" in refused()


def test_a_pickle_is_refused_unread(tmp_path, folders):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return canary.touch, ()

    folder = tmp_path / "model"
    folder.mkdir()
    for file in folders("llava").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(SetupError, match=r"pytorch_model.bin is a pickle, .* convert it"):
        attrib.load(str(folder))
    assert not canary.exists()


def layouts(weights):
    """One checkpoint's weights by the names of several versions of transformers."""
    old = {}  # up to 4.51
    for name, value in weights.items():
        name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
        name = name.replace("language_model.", "language_model.model.")
        old[name.replace("lm_head", "language_model.lm_head")] = value
    new = {n.replace("vision_tower.", "vision_tower.vision_model."): w for n, w in weights.items()}
    return old, new, weights


def written(folder, weights):
    save_file({n: w.clone() for n, w in weights.items()}, folder / "model.safetensors", FORMAT)
    return str(folder)


FORMAT = {"format": "pt"}


def test_every_layout_of_names_gives_the_same_bits(tmp_path, caplog):
    folder, vlm = save(*tiny_models.build("llava"), tmp_path), tiny_vlm("llava")
    batch = vlm.encode(*examples())
    right = vlm.logits(batch)
    for weights in layouts(vlm.model.state_dict()):
        loaded = attrib.load(written(folder, weights), verify=False)
        assert torch.equal(loaded.logits(batch), right)
    assert caplog.text == ""
    # Not a layout: the line of a wrong name, which is also the control.
    attrib.load(written(folder, weights | {"nonsense": torch.ones(2)}), verify=False)
    assert "has weights that the model does not have (1), nonsense among them" in caplog.text


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, capfd):
    folder = save(*tiny_models.build("llava"), tmp_path)
    weights = tiny_vlm("llava").model.state_dict()
    name = "model.language_model.layers.1.mlp.up_proj.weight"

    def refused(weights, **settings):
        with pytest.raises(SetupError) as caught:
            attrib.load(written(folder, weights), **settings)
        return str(caught.value)

    lacking = {key: value for key, value in weights.items() if key != name}
    assert f"lacks 1 of the model's weights, {name} among them; download" in refused(lacking)
    other = {f"other.{key}": value for key, value in weights.items()}
    assert "lacks 82 of" in refused(other) and "does not have (82), other.lm_" in refused(other)
    short = weights | {name: weights[name][:-1]}
    told = f"the weight {name} has the shape (127, 64), and the model of its config.json (128, 64)"
    assert told in refused(short) and told in refused(short, verify=False)
    for dtype, told in ((torch.int8, "I8"), (torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")):
        packed = refused(weights | {name: weights[name].to(dtype)}, verify=False)
        assert f"the weight {name} in model.safetensors has the dtype {told}, and" in packed
    ids = {"model.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    assert attrib.load(written(folder, weights | ids), verify=False)  # of old checkpoints
    assert "REPORT" not in "".join(capfd.readouterr())
    assert attrib.load(written(folder, lacking), verify=False).num_layers == 4
    settings = json.loads((folder / "config.json").read_text())
    del settings["text_config"]  # the default is a decoder of billions of parameters
    (folder / "config.json").write_text(json.dumps(settings))
    assert "numbers; give the config that belongs to them" in refused(weights)


def test_broken_files_are_refused_by_name(tmp_path):
    model, processor = tiny_models.build("llava")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    processor.save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    whole, listed = first.read_bytes(), index.read_text()

    def refused():
        with pytest.raises(SetupError) as caught:
            attrib.load(str(tmp_path), verify=False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for damaged in (whole[:-100], b"", bytes(100)):
        first.write_bytes(damaged)
        assert f"cannot read its weights, {first.name} is damaged: " in refused()
    first.write_bytes(whole)
    for damaged in ("{", "{}", "[]", '{"weight_map": [1]}'):
        index.write_text(damaged)
        assert f"{index.name} is damaged (" in refused()
    index.write_text(listed)
    second.rename(tmp_path / "elsewhere")
    assert f"shards are missing, {second.name} among them; download" in refused()
    index.unlink()
    assert f"neither model.safetensors nor {index.name}" in refused()
    (tmp_path / "elsewhere").rename(second)
    index.write_text(listed)
    assert attrib.load(str(tmp_path), verify=False).num_layers == 4
    (tmp_path / "tokenizer.json").write_text("{")
    assert "cannot load its processor: " in refused()
    processor.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("[1]")
    assert "cannot read its weights: " in refused()
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ([1], "int8", {"quant_method": ["gptq"]}, {"quant_method": 8}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": wrong}))
        assert "quantization_config" in (told := refused()) and "expected an object" in told
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_config": 7}))
    assert "its config.json cannot be used: " in refused()
    for damaged in ("", "{", "[]", "null"):
        (tmp_path / "config.json").write_text(damaged)
        assert "cannot read its config.json: it is not a JSON object (" in refused()


def test_a_model_whose_logits_are_capped_is_loaded_with_its_cap(tmp_path):
    model, processor = tiny_models.build("paligemma")
    text = tr.Gemma2Config(
        **tiny_models.TEXT, num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5,
        attn_logit_softcapping=None,
    )  # fmt: skip
    config = model.config.to_dict() | {"text_config": text.to_dict()}
    torch.manual_seed(0)
    model = tr.PaliGemmaForConditionalGeneration(tr.PaliGemmaConfig(**config))
    save(model, processor, tmp_path)
    vlm = attrib.load(str(tmp_path), verify=False)  # Gemma 2 attends without sdpa
    assert vlm.unembedding.map.cap == 0.5
    assert check(vlm, (checks.unembedded_last_output_is_the_logits,)).passed


def test_a_device_map_spreads_a_model_whose_numbers_stay(folders):
    whole = tiny_vlm("llava")
    layers = {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    rest = {"embed_tokens": "disk", "norm": "cpu", "rotary_emb": "cpu"}
    parts = {f"model.language_model.{name}": device for name, device in rest.items()} | layers
    parts |= {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    vlm = attrib.load(str(folders("llava")), device_map=parts)
    assert {weight.device.type for weight in vlm.model.parameters()} == {"cpu", "meta"}
    batch, theirs = vlm.encode(*examples()), whole.encode(*examples())
    assert_close(vlm.logits(batch), whole.logits(theirs), rtol=1e-6, atol=1e-6)
    auto = attrib.load(str(folders("llava")), device_map="auto", dtype="float32", verify=False)
    assert_close(auto.logits(batch), whole.logits(theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "everywhere"}, "expected one of auto"),
        ({"device_map": "{model"}, "is not JSON"),
        ({"device_map": {}}, "is empty"),
        ({"device_map": [1]}, "is a list; expected a name or a map"),
        ({"device_map": {"": None}}, "device None cannot be used"),
        ({"device_map": '{"": 1.5}'}, "device 1.5 cannot be used"),
        ({"device_map": {"nonsense": "cpu"}}, "no part 'nonsense'; its parts are model, lm_head"),
        ({"device_map": {"": "cuda:99"}}, "'cuda:99' cannot be used"),
        ({"device_map": "auto", "device": "cpu"}, "give one of them"),
    ],
)
def test_a_device_map_that_cannot_work_is_refused(folders, options, message):
    with pytest.raises(SetupError, match=message):
        attrib.load(str(folders("llava")), **options)

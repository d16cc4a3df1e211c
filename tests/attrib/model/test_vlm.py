"""What `encode` promises about tokens, spans, targets and grids; what `generate` returns."""

import copy

import pytest
import tiny_models
import tokenizers as tk
import torch
import transformers as tr
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import write
from attrib.forward.replay import capture
from attrib.model.answers import target_ids
from attrib.model.components import find_components
from attrib.model.logits import freeze_norm
from attrib.model.patch_grid import find_grid
from attrib.model.vlm import VLM

IDS = tiny_models.IMAGE, tiny_models.BOS


def words(batch, span, row, vlm):
    return vlm.tokenizer.decode(batch.inputs["input_ids"][row][batch[span][row]])


# --- prompts and targets


def test_the_spans_hold_what_they_say(vlm):
    batch = vlm.encode([picture(), None], ["What is it?", "nq"], padding_side="left")
    assert words(batch, "text", 0, vlm).strip() == "What is it?"
    assert words(batch, "text", 1, vlm) == "nq"
    assert words(batch, "last", 0, vlm) == "?"
    assert words(batch, "bos", 1, vlm) == vlm.tokenizer.bos_token
    image_token = vlm.components.image_token_id
    assert torch.equal(batch["visual"], batch.inputs["input_ids"] == image_token)
    assert batch["visual"].sum(1).tolist() == [{"llava": 4}.get(vlm.name, 6), 0]
    assert batch.size == 2


def test_a_target_follows_its_prompt_and_changes_nothing_before_it(any_vlm):
    images, prompts = examples()
    bare = any_vlm.encode(images, prompts, padding_side="right")
    batch = any_vlm.encode(images, prompts, ["cat", " dog", "a b"], padding_side="right")
    for row in range(3):
        length = int(bare.inputs["attention_mask"][row].sum())
        same = batch.inputs["input_ids"][row, :length]
        assert torch.equal(same, bare.inputs["input_ids"][row, :length])
        for span in ("visual", "text", "last"):
            assert torch.equal(batch[span][row, :length], bare[span][row, :length])
            assert not batch[span][row, length:].any()
        target = [" cat", " dog", " a b"][row]
        assert words(batch, "target", row, any_vlm) == target
        assert int(batch["target"][row].int().argmax()) == length


def test_labels_are_the_target_tokens_one_position_early(vlm):
    batch = vlm.encode(*examples(2), targets=["cat", "mouse"], padding_side="left")
    ids = batch.inputs["input_ids"]
    assert torch.equal(batch.labels != -100, batch["target"].roll(-1, 1))
    assert torch.equal(batch.labels[batch.labels != -100], ids[batch["target"]])
    # The first is read at the last prompt token, and no end of sequence is asked for.
    assert (batch.labels[batch["last"]] != -100).all()
    assert vlm.tokenizer.decode(batch.labels[0][batch.labels[0] != -100]) == " cat"


def test_a_target_is_outside_what_paligemma_sees_in_both_directions():
    vlm = tiny_vlm("paligemma")
    batch = vlm.encode(*examples(), targets=["cat"] * 3)
    assert torch.equal(batch.inputs["token_type_ids"].bool(), batch["target"])
    with torch.no_grad():
        clean = vlm.logits(batch)
        changed = dict(batch.inputs, input_ids=batch.inputs["input_ids"].clone())
        changed["input_ids"][:, -1] += 1  # the last target token
        moved = vlm.model(**changed, use_cache=False).logits
    assert torch.equal(moved[:, :-1], clean[:, :-1])
    assert not torch.equal(moved[:, -1], clean[:, -1])


@pytest.mark.parametrize(
    ("prompt", "target", "joined"),
    [("a photo of", "cats", " cats"), ("of ", "cats", " cats"), ("of", " cats", " cats")],
)
def test_one_space_stands_between_prompt_and_target(prompt, target, joined):
    tokenizer = tiny_models.tokenizer()
    assert tokenizer.decode(target_ids(tokenizer, prompt, target)) == joined


def test_the_first_answer_token_is_the_one_after_a_prompt(vlm):
    token = vlm.answer_token("red")
    batch = vlm.encode([None], ["What color?"], ["red"])
    content = batch.inputs["input_ids"][batch["target"]][1]  # these tokenizers know bytes only
    assert content == token
    led = vlm.encode([None], ["What color?"], ["red"], answers=["red"])
    assert led.labels[led["last"]] == token
    assert torch.equal(led.inputs["input_ids"], batch.inputs["input_ids"])


def test_the_chat_template_is_used_on_demand():
    vlm = tiny_vlm("llava")
    batch = vlm.encode([picture(), None], ["Hi", "Hi"], template="chat")
    assert words(batch, "text", 0, vlm) == "USER: \nHi ASSISTANT:"
    assert words(batch, "text", 1, vlm) == "USER: Hi ASSISTANT:"
    assert batch["bos"].sum(1).tolist() == [1, 1]


def test_a_broken_chat_template_is_refused_where_it_is_used(monkeypatch):
    tiny = tiny_vlm("llava")
    monkeypatch.setattr(tiny.processor, "chat_template", "{{ broken")
    vlm = VLM(tiny.model, tiny.processor)
    assert torch.equal(vlm.encode([picture()], ["a"])["visual"].sum(), torch.tensor(4))
    with pytest.raises(AttribError, match="prompt 0: the chat template refuses it"):
        vlm.encode([picture()], ["a"], template="chat")


def test_markers_come_from_the_processor():
    markers = {name: tiny_vlm(name)._placeholder.marker for name in tiny_models.BUILDERS}
    assert markers["llava"] == "<image>\n"  # from its chat template
    assert markers["llava_next"] == "<image>\n"  # it has none: token and newline
    assert markers["qwen2_vl"] == "<start_of_image><image><end_of_image>"
    assert markers["smolvlm"] == "<image>"
    assert {markers[name] for name in ("blip2_opt", "blip2_llama", "paligemma")} == {""}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode_are_read_as_rgb(mode):
    vlm, image = tiny_vlm("llava"), picture().convert(mode)
    pixels = [vlm.encode([i], ["x"]).inputs["pixel_values"] for i in (image, image.convert("RGB"))]
    assert torch.equal(*pixels)


def test_inputs_that_were_processed_elsewhere_have_the_same_spans(different_vlm):
    batch = different_vlm.encode(*examples())
    bare = VLM(different_vlm.model)
    again = bare.batch(batch.inputs)
    assert {name: span.tolist() for name, span in again.spans.items()} == {
        name: span.tolist() for name, span in batch.spans.items()
    }
    with torch.no_grad():
        assert torch.equal(bare.logits(again), different_vlm.logits(batch))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.encode([None], ["a", "b"]), "1 images for 2 prompts"),
        (lambda v: v.encode([None], ["a"], ["b", "c"]), "2 targets for 1 prompts"),
        (lambda v: v.encode([], []), "no prompts"),
        (lambda v: v.encode([None] * 2, ["a", ""]), "prompt 1 is empty, and there is no image"),
        (lambda v: v.encode([None] * 2, ["a", "b"], ["c", " "]), "target 1 is empty"),
        (lambda v: v.encode([None] * 2, ["a", "an <image>"]), "prompt 1 contains '<image>'"),
        (lambda v: v.encode([None], ["a"], template="chat"), "no chat template"),
        (lambda v: v.generate(v.encode([None], ["a"], ["b"])), "encode them without targets"),
        (lambda v: VLM(v.model).encode([None], ["a"]), "has no processor"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(AttribError, match=message):
        call(tiny_vlm("blip2_llama"))


def test_a_target_that_merges_with_its_prompt_is_refused():
    vocab = {"a": 0, "b": 1, "Ġ": 2, "Ġb": 3, "Ċ": 4, "ĊĠ": 5}
    raw = tk.Tokenizer(tk.models.BPE(vocab, [("Ġ", "b"), ("Ċ", "Ġ")]))
    raw.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tr.PreTrainedTokenizerFast(tokenizer_object=raw)
    assert target_ids(tokenizer, "a", "b") == [3]
    assert target_ids(tokenizer, "a ", "b") == [3]  # the space moves to the target
    with pytest.raises(AttribError, match="target 7: '  b' merges with the end of its prompt 'a"):
        target_ids(tokenizer, "a\n", "  b", row=7)


def test_eight_ragged_examples_have_the_logits_of_each_alone(different_vlm):
    images, prompts = examples(8)
    batch = different_vlm.encode(images, prompts)
    with torch.no_grad():
        together = different_vlm.logits(batch)
        for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            alone = different_vlm.logits(different_vlm.encode([image], [prompt]))[0]
            real = batch.inputs["attention_mask"][row].bool()
            assert_close(together[row, real], alone, atol=1e-5, rtol=0)


def test_a_tokenizer_without_a_pad_token_is_left_as_it_was():
    tiny = tiny_vlm("llava")
    processor = copy.copy(tiny.processor)
    processor.tokenizer = copy.deepcopy(tiny.tokenizer)
    processor.tokenizer.pad_token = None
    vlm = VLM(tiny.model, processor)
    batch, padded = vlm.encode(*examples()), tiny.encode(*examples())
    assert processor.tokenizer.pad_token is None
    assert vlm.pad_id == processor.tokenizer.eos_token_id
    assert torch.equal(batch.inputs["attention_mask"], padded.inputs["attention_mask"])
    with torch.no_grad():
        assert torch.equal(vlm.logits(batch)[batch["last"]], tiny.logits(padded)[padded["last"]])
    assert vlm.generate(batch, max_new_tokens=3) == tiny.generate(padded, max_new_tokens=3)


@torch.no_grad()
def test_the_active_batch_belongs_to_one_wrapper_and_one_pass(vlm):
    batch, other = vlm.encode(*examples()), VLM(vlm.model, vlm.processor)
    seen = []
    with write(
        vlm, 0, lambda h: seen.append((vlm.active_batch, other.active_batch)) or h, batch["last"]
    ):
        vlm.logits(batch)
    assert seen == [(batch, None)] and vlm.active_batch is None
    with (
        pytest.raises(AttribError, match="fn returned"),
        write(vlm, 0, lambda h: h[:1], batch["last"]),
    ):
        vlm.logits(batch)
    assert vlm.active_batch is None


# --- generation


@pytest.mark.parametrize("wanted", [0, -1])
def test_a_number_of_new_tokens_that_is_none_is_refused(wanted):
    tiny = tiny_vlm("llava")
    batch = tiny.encode(*examples())
    with pytest.raises(AttribError, match=f"max_new_tokens={wanted}: give a whole number"):
        tiny.generate(batch, max_new_tokens=wanted)


def test_generate_returns_the_new_text_of_the_plain_model(vlm):
    texts = []
    for image, prompt in zip(*examples(), strict=True):
        batch = vlm.encode([image], [prompt])
        out = vlm.model.generate(
            **batch.inputs, max_new_tokens=5, do_sample=False, pad_token_id=256
        )
        new = out[0, batch.inputs["input_ids"].shape[1] :]
        texts.append(vlm.tokenizer.decode(new, skip_special_tokens=True).strip())
        assert vlm.generate(batch, max_new_tokens=5) == texts[-1:]
    assert any(texts)


def test_writing_while_generating_needs_padding_on_the_left(vlm):
    images, prompts = examples()
    left = vlm.encode(images, prompts, padding_side="left")
    right = vlm.encode(images, prompts, padding_side="right")
    with write(vlm, 1, lambda h: -2 * h, left["text"]):
        changed = vlm.generate(left, max_new_tokens=4)
    assert changed != vlm.generate(left, max_new_tokens=4)
    with (
        pytest.raises(AttribError, match="padding_side='left' to write during generation"),
        write(vlm, 1, lambda h: h, right["text"]),
    ):
        vlm.generate(right, max_new_tokens=4)


# --- grids


def grid(name, size):
    return tiny_vlm(name).encode([picture(*size)], ["x"]).grids[0]


def test_grids_say_where_the_processor_looks():
    assert grid("llava", (80, 40)).box == pytest.approx((20, 0, 60, 40), abs=0.5)  # centre crop
    assert grid("llava", (40, 80)).box == pytest.approx((0, 20, 40, 60), abs=0.5)
    assert grid("paligemma", (90, 40)).box == (0, 0, 90, 40)  # squeezed
    wide = grid("qwen2_vl", (112, 56))
    assert (wide.rows, wide.cols, wide.box) == (2, 4, (0, 0, 112, 56))
    tiles = grid("idefics3", (112, 56))
    assert (tiles.rows, tiles.cols, tiles.box) == (2, 2, (0, 0, 112, 56))
    assert tiles.first > 0  # the whole comes after its tiles
    assert grid("llava_next", (112, 56)).first == 0  # and here before them


def test_a_processor_that_pads_has_a_grid_beyond_the_image():
    images = tr.LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    box = find_grid(images, (80, 40), 16, 14).box
    assert_close(torch.tensor(box), torch.tensor([0.0, -20.0, 80.0, 60.0]), atol=0.5, rtol=0)


def test_there_is_no_grid_where_there_is_none():
    assert grid("blip2_opt", (60, 40)) is None  # queries look everywhere
    assert tiny_vlm("llava").encode([None], ["x"]).grids == (None,)
    images = tr.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    assert find_grid(images, (60, 40), 4, 14) is not None
    assert find_grid(images, (60, 40), 3, 14) is None
    assert find_grid(images, (1, 40), 4, 14) is None


GRIDDED = [name for name in tiny_models.BUILDERS if "blip" not in name]


@pytest.mark.parametrize("name", GRIDDED)
def test_a_cell_of_the_grid_is_what_its_token_sees(name):
    """With the tower's attention silenced, whitening one cell moves that cell's token most."""
    tiny = tiny_vlm(name)
    vlm = VLM(copy.deepcopy(tiny.model), tiny.processor)
    for key, weight in vlm.model.get_encoder(modality="image").named_parameters():
        if (
            "attn" in key
            and "proj.weight" in key
            and not key.endswith(("q_proj.weight", "k_proj.weight"))
        ):
            weight.zero_()
    image = picture(56, 112)
    for before in ([], [picture(40, 60)]):  # alone, or the second picture of a prompt
        _expect_cells(vlm, image, before)


def _expect_cells(vlm, image, before):
    place = vlm.encode([[*before, image]], ["x"]).pictures[0][-1].grid

    @torch.no_grad()
    def tokens(shown):
        batch = vlm.encode([[*before, shown]], ["x"])
        with capture(vlm) as captured:
            vlm.last_logits(batch)
        cells = slice(place.first, place.first + place.rows * place.cols)
        return captured.embed[0][batch["visual"][0]][cells]

    left, top, right, bottom = place.box
    width, height = (right - left) / place.cols, (bottom - top) / place.rows
    clean = tokens(image)
    num = place.rows * place.cols
    for cell in [num - 2, num - 1] if before else range(num):
        x, y = left + width * (cell % place.cols), top + height * (cell // place.cols)
        box = [x + width / 4, y + height / 4, x + 3 * width / 4, y + 3 * height / 4]
        shown = image.copy()
        shown.paste("white", tuple(round(edge) for edge in box))
        assert (tokens(shown) - clean).norm(dim=-1).argmax() == cell


# --- components


def test_components_are_the_models_own(any_vlm):
    assert any_vlm.num_layers == len(any_vlm.layers) == 4
    assert any_vlm.d_model == 64
    assert any_vlm.components.head is any_vlm.model.get_output_embeddings()
    assert any_vlm.tokenizer is any_vlm.processor.tokenizer


def test_a_repr_is_short_and_names_the_model():
    shown = repr(tiny_vlm("blip2_opt"))
    assert len(shown.splitlines()) <= 10
    assert shown.startswith(
        "VLM 'blip2_opt' (Blip2ForConditionalGeneration)\n  4 layers, d_model 64"
    )
    assert "float32 on cpu" in shown and "learned queries" in shown
    assert "patches of" in repr(tiny_vlm("llava"))
    assert "processor: None" in repr(VLM(tiny_vlm("llava").model))


def test_the_repr_of_a_batch_is_short_and_counts_its_spans():
    batch = tiny_vlm("llava").encode(*examples(8), targets=["cat"] * 8)
    shown = repr(batch)
    assert len(shown.splitlines()) <= 10
    assert shown.startswith(f"Batch of 8, {batch['last'].shape[1]} positions")
    assert "visual [4, 0, 4]" in shown and "target [4, 4, 4]" in shown
    assert "grids: 2x2, none, 2x2" in shown
    assert "prompt 1: 'What is very red?'" in shown and "and 5 more examples" in shown


def test_models_without_the_components_are_refused():
    text = tr.T5Config(
        d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32,
        decoder_start_token_id=0,
    )  # fmt: skip
    parts = tiny_models._blip_parts(50)
    t5 = tr.Blip2ForConditionalGeneration(tr.Blip2Config(**parts, text_config=text.to_dict()))
    with pytest.raises(SetupError, match="encoder-decoder"):
        find_components(t5)
    model = copy.deepcopy(tiny_vlm("llava").model)
    with pytest.raises(SetupError, match="the output embedding is not linear"):
        find_components(model.model)
    model.config.image_token_id = None
    with pytest.raises(SetupError, match="has no image_token_id"):
        find_components(model)


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "gemma3"])
def test_a_frozen_norm_is_linear_and_equals_the_norm_where_it_was_frozen(name):
    vlm = tiny_vlm(name)
    h = torch.randn(3, 64) * 5 + 1
    frozen = vlm.unembedding.freeze_norm(h)
    parts = torch.randn(3, 7, 64)
    parts[:, -1] = h - parts[:, :-1].sum(1)
    shares = frozen(parts)
    assert shares.shape == (3, 7, 64)
    assert_close(shares.sum(1) + frozen.constant, vlm.components.norm(h), atol=1e-5, rtol=1e-5)
    assert_close(frozen(2 * parts[:, 0]), 2 * frozen(parts[:, 0]))
    assert frozen.centred == (name == "blip2_opt")  # OPT's LayerNorm has a bias too
    assert bool(frozen.constant.any()) == (name == "blip2_opt")


def test_a_norm_that_is_not_linear_when_frozen_is_refused():
    with pytest.raises(AttribError, match="Tanh is neither an RMSNorm nor a LayerNorm"):
        freeze_norm(torch.nn.Tanh(), torch.randn(2, 8))

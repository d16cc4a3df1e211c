import random

import pytest

from attrib.data.scenes import make_scene
from attrib.data.scenes.questions import KINDS, caption, sample_question
from attrib.data.scenes.vocabulary import (
    ALIASES,
    CONCEPTS,
    EVERYDAY,
    NUMBERS,
    alias_facts,
    all_facts,
)
from attrib.zoo.tokenizer import build_tokenizer

FAMILIES = ("llama", "opt")


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return build_tokenizer(request.param)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_names_of_concepts_are_one_token_and_aliases_three(tokenizer):
    assert all(len(ids(tokenizer, f" {word}")) == 1 for word in (*CONCEPTS, *NUMBERS))
    assert all(len(ids(tokenizer, f" {a}")) == 3 for group in ALIASES.values() for a in group)


def test_every_text_of_the_scenes_round_trips_without_character_tokens(tokenizer):
    rng = random.Random(0)
    texts = [f"{f.question}? {f.answer}" for f in all_facts() + alias_facts()]
    for seed in range(40):
        scene = make_scene(seed)
        texts.append(f"a photo of {caption(scene)}")
        asked = (sample_question(scene, kind, rng) for kind in KINDS)
        texts += [f"{q.text(rng, EVERYDAY)} The answer is: {q.answer}" for q in asked if q]
    for text in texts:
        assert tokenizer.decode(ids(tokenizer, text)) == text
        assert "▁" not in tokenizer.tokenize(text)  # a bare space marker heads a spelled word


@pytest.mark.parametrize("text", ["How many skateboards? 24", "café, naïve", "日本 🙂", "a\nb"])
def test_any_other_text_round_trips_too(tokenizer, text):
    back = tokenizer.decode(ids(tokenizer, text))
    assert back.replace(" \n", "\n").replace("\n ", "\n") == text
    assert tokenizer.unk_token_id not in ids(tokenizer, text)


def test_words_after_the_image_are_tokenised_as_anywhere_else(tokenizer):
    assert ids(tokenizer, "<image>\nWhat color")[-2:] == ids(tokenizer, "What color")


def test_a_target_continues_its_prompt_token_for_token(tokenizer):
    prompt = "What color is the star? The answer is:"
    assert ids(tokenizer, f"{prompt} red") == ids(tokenizer, prompt) + ids(tokenizer, " red")


def test_special_tokens_are_those_of_the_original_families():
    llama, opt = (build_tokenizer(family) for family in FAMILIES)
    assert llama("red").input_ids[0] == llama.bos_token_id != llama.eos_token_id
    assert opt("red").input_ids[0] == opt.bos_token_id == opt.eos_token_id == 2
    assert opt.pad_token_id == 1

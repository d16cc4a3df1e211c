"""The tokenizer of the embedded backbones: a small sub-word vocabulary with a byte fallback.

Words of the scenes are one token each and made-up names are sequences of shared syllables. Anything
else falls back to characters and bytes, so that real E-VQA rows can be encoded too.
"""

import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attrib.data.scenes import RELATIONS
from attrib.data.scenes.questions import CAPTION_PROMPT, CAPTION_REPHRASES, TEMPLATES
from attrib.data.scenes.vocabulary import (
    CONCEPTS,
    NICKNAMES,
    NUMBERS,
    OPTIONS,
    SYLLABLES,
    fact_words,
)

IMAGE_TOKEN = "<image>"
_WORD, _SYLLABLE, _CHARACTER, _BYTE = -1.0, -2.0, -12.0, -20.0  # log-scores: prefer words


def scene_words() -> list[str]:
    """Every whole word of the scenes' questions, captions and facts, sorted."""
    texts = [re.sub(r"\{\w+\}", "", t) for group in TEMPLATES.values() for t in group]
    texts += [CAPTION_PROMPT, *CAPTION_REPHRASES, *RELATIONS, *CONCEPTS, *NUMBERS]
    texts += ["The answer is Call", "a an in the and", *NICKNAMES, *OPTIONS, *fact_words()]
    return sorted(set(re.findall(r"[A-Za-z]+", " ".join(texts))))


def _pieces(specials: list[str]) -> list[tuple[str, float]]:
    scored: dict[str, float] = dict.fromkeys(specials, 0.0)
    for word in scene_words():
        scored.setdefault(f"▁{word}", _WORD)
    for syllable in SYLLABLES:
        scored.setdefault(f"▁{syllable}", _SYLLABLE)
        scored.setdefault(syllable, _SYLLABLE)
    scored.setdefault("▁\n", _SYLLABLE)
    for character in "▁" + string.punctuation + string.digits + string.ascii_letters:
        scored.setdefault(character, _CHARACTER)
    for byte in range(256):
        scored.setdefault(f"<0x{byte:02X}>", _BYTE)
    return list(scored.items())


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a text family.

    Args:
        family: "llama" (BOS `<s>`, EOS `</s>`) or "opt" (`</s>` is both, and `<pad>` has id 1).
    """
    specials = ["<pad>", "<s>", "</s>"] if family == "llama" else ["<s>", "<pad>", "</s>"]
    specials += ["<unk>", IMAGE_TOKEN]
    bos = "<s>" if family == "llama" else "</s>"
    backend = Tokenizer(
        models.Unigram(_pieces(specials), unk_id=specials.index("<unk>"), byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Newlines are separate, so that the next word is tokenised as anywhere else.
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, specials.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )

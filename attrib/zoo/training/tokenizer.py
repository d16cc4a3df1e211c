"""The tokenizer of the embedded backbones: a small sub-word vocabulary with a byte fallback.

Words of the lab are one token each, made-up names are spelled in shared syllables, anything else
falls back to characters and bytes - so real E-VQA rows can be encoded too.
"""

import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attrib.data.scenes.questions import CAPTION_PROMPT, CAPTION_REPHRASES, TEMPLATES
from attrib.data.scenes.scene import RELATIONS
from attrib.data.scenes.vocabulary import (
    CONCEPTS,
    NICKNAMES,
    NUMBERS,
    OPTIONS,
    SYLLABLES,
    fact_words,
)

IMAGE_TOKEN = "<image>"
_WORD, _SYLLABLE, _CHARACTER, _BYTE = -1.0, -2.0, -12.0, -20.0  # log-scores: whole words win


def lab_words() -> list[str]:
    """Every whole word that the lab's questions, captions and facts are made of, sorted."""
    texts = [re.sub(r"\{\w+\}", "", t) for group in TEMPLATES.values() for t in group]
    texts += [CAPTION_PROMPT, *CAPTION_REPHRASES, *RELATIONS, *CONCEPTS, *NUMBERS]
    texts += ["The answer is Call", "a an in the and", *NICKNAMES, *OPTIONS, *fact_words()]
    return sorted(set(re.findall(r"[A-Za-z]+", " ".join(texts))))


def _pieces(specials: list[str]) -> list[tuple[str, float]]:
    scored: dict[str, float] = dict.fromkeys(specials, 0.0)
    for word in lab_words():
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
        family: "llama" (`<s>` begins, `</s>` ends a text) or "opt" (`</s>` does both, and `<pad>`
            has id 1, as in OPT).
    """
    specials = ["<pad>", "<s>", "</s>"] if family == "llama" else ["<s>", "<pad>", "</s>"]
    specials += ["<unk>", IMAGE_TOKEN]
    bos = "<s>" if family == "llama" else "</s>"
    backend = Tokenizer(
        models.Unigram(_pieces(specials), unk_id=specials.index("<unk>"), byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A newline stands alone, so that the word after it is spelled as anywhere else.
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

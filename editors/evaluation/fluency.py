"""Fluency of an edited model: does it still write varied text, or the same words again and again?

Entropy of n-grams as ROME measures it (Meng et al. 2022, App. B: bigrams and trigrams, weighted 2/3
and 4/3), and the share of trigrams that repeat an earlier one (Welleck et al. 2020).
"""

import math
from collections import Counter

from attrib.model.batch import Batch
from attrib.model.vlm import VLM

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
REPEATED = 3  # words of an n-gram that may repeat


def ngram_entropy(text: str) -> float:
    """Weighted entropy of a text's bigrams and trigrams, in bits; 0 for fewer than two words."""
    return sum(weight * _entropy(_ngrams(text, n)) for n, weight in WEIGHTS.items())


def repetition(text: str, n: int = REPEATED) -> float:
    """Share of a text's n-grams that occurred before in it; 0 for fewer than `n` words."""
    found = _ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def fluency(vlm: VLM, batch: Batch, num_tokens: int) -> dict[str, float]:
    """Means over prompts of both measures, of exactly so many generated tokens each."""
    texts = vlm.generate(batch, num_tokens, min_new_tokens=num_tokens)
    return {
        "entropy": sum(map(ngram_entropy, texts)) / len(texts),
        "repetition": sum(map(repetition, texts)) / len(texts),
    }


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _entropy(items: list[tuple[str, ...]]) -> float:
    counts = Counter(items).values()
    return -sum(c / len(items) * math.log2(c / len(items)) for c in counts)

"""An observation as small data for a page: arrays as base64, maps in steps of 255.

A map's values are stored as `round(255 sqrt(value / largest))` with the largest value of its row:
so small values beside a large one survive: no stored value is off by more than 0.4 % of the
largest. Everything else is float32. The whole is JSON, compressed.
"""

import gzip
import json
from base64 import b64encode
from typing import Any

import numpy as np

from attrib.explorer.findings import findings, settles, strongest_attention
from attrib.explorer.observe import Observation
from attrib.explorer.pictures import picture_data
from attrib.report.page import visible

STEPS = 255


def packed(data: Any) -> str:
    """JSON, compressed, in base64: no text in it can end a script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def array(values: np.ndarray) -> dict[str, Any]:
    """An array of numbers: float32, or the narrowest unsigned integers."""
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype("<f4")
    elif values.dtype != np.uint8:
        values = values.astype("<u2" if values.size == 0 or values.max() < 2**16 else "<u4")
    raw = b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"type": values.dtype.str[1:], "shape": list(values.shape), "data": raw}


def steps(values: np.ndarray) -> dict[str, Any]:
    """Non-negative values in steps of their row, the last axis; rows without values are NaN."""
    finite = np.nan_to_num(values.astype(np.float64)).clip(0)
    largest = finite.max(-1, keepdims=True, initial=0)
    share = np.divide(finite, largest, out=np.zeros_like(finite), where=largest > 0)
    known = np.isfinite(values).any(-1) if values.shape[-1] else np.ones(values.shape[:-1], bool)
    return {
        "steps": array(np.round(STEPS * np.sqrt(share)).astype(np.uint8)),
        "largest": array(np.where(known, largest[..., 0], np.nan)),
    }


class Vocabulary:
    """The texts of tokens, each stored once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.index: dict[int, int] = {}

    def __call__(self, ids: Any) -> np.ndarray:
        """Indices into `texts` of token ids."""
        ids = np.asarray(ids)
        flat = [self.index.setdefault(int(i), len(self.index)) for i in ids.ravel()]
        return np.array(flat, np.int64).reshape(ids.shape)

    @property
    def texts(self) -> list[str]:
        """The text of each token, with codes in place of control characters."""
        return [token_text(self.tokenizer, i) for i in self.index]


def token_text(tokenizer: Any, token: int) -> str:
    """One token as a reader sees it: inert, never empty."""
    text = tokenizer.decode([token])
    if text.strip(" "):
        return visible(text.strip(" ").replace("\n", "⏎"))
    # A model may have more tokens than its tokenizer has names.
    return "␣" if text else visible(tokenizer.convert_ids_to_tokens(token) or f"token {token}")


def side_data(seen: Observation, label: str, images: list[Any]) -> dict[str, Any]:
    """One model's side of the page."""
    words, visual = seen.words, seen.places("visual")
    vocabulary = Vocabulary(seen.vlm.tokenizer)
    keys, ids = vocabulary(seen.keys), vocabulary([seen.ids[p] for p in words])
    lens, visual_lens = vocabulary(seen.lens), vocabulary(seen.visual_lens)
    answer = vocabulary(seen.answer)
    probabilities = seen.key_p[:, -1]
    return {
        "label": visible(label),
        "model": visible(seen.vlm.name),
        "layers": seen.vlm.num_layers,
        "vocabulary": vocabulary.texts,
        "words": ids.tolist(),
        "chips": _chips(seen, words, visual),
        "answer": [
            {"token": int(t), "p": round(float(p), 6)}
            for t, p in zip(answer, probabilities[seen.first_answer :], strict=True)
        ],
        "firstAnswer": seen.first_answer,
        "keys": keys.tolist(),
        "findings": findings(seen, [vocabulary.texts[i] for i in keys]),
        "settles": [settles(seen, i) for i in range(len(seen.queries))],
        "looks": [strongest_attention(seen, i) for i in range(len(seen.queries))],
        "paper": array(seen.paper),
        "shares": array(seen.shares),
        "constants": array(seen.constants),
        "lens": array(lens),
        "lensP": array(seen.lens_p),
        "keyP": array(seen.key_p),
        "sums": array(attention_sums(seen)),
        "attentionWords": steps(seen.attention[..., words]),
        "attentionVisual": steps(seen.attention[..., visual]),
        "heat": steps(seen.heat),
        "visualLens": array(visual_lens),
        "visualP": steps(seen.visual_p),
        "near": array(seen.nearest),
        "cosine": array(seen.cosine),
        "pictures": picture_data(seen.batch, images),
        "seconds": [round(s, 4) for s in seen.seconds],
        "note": visible(seen.note),
    }


def attention_sums(seen: Observation) -> np.ndarray:
    """Sums of attention over the picture, the prompt's words, its first token, and the answer."""
    prompt = len(seen.batch.spans["last"][0])
    spans = [seen.places("visual"), seen.places("text"), seen.places("bos")]
    spans.append(list(range(prompt, len(seen.ids))))
    return np.stack([seen.attention[..., at].sum(-1) for at in spans], -1)


def _chips(seen: Observation, words: list[int], visual: list[int]) -> list[dict[str, Any]]:
    """The prompt as chips: words, with a `query` where one can look, and runs of visual tokens."""
    prompt, pictured = len(seen.batch.spans["last"][0]), set(visual)
    at = {p: i for i, p in enumerate(seen.queries[: seen.first_answer])}
    chips: list[dict[str, Any]] = []
    for position in range(prompt):
        if position not in pictured:
            word = words.index(position)
            chips.append({"word": word, "at": position, "query": at.get(position, -1)})
        elif chips and "visual" in chips[-1]:
            chips[-1]["visual"] += 1
        else:
            chips.append({"visual": 1, "at": position})
    return chips

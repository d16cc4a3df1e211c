"""What the explorer shows of one model and one prompt, from one generation and one captured pass.

The model answers greedily. One more pass, over the prompt and that answer, then gives the states
behind every generated token at once: causality makes them those of the generation. Contributions,
logit lens, attention rows and heatmaps are those of the analyses, read in that pass.
"""

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from attrib.analyses.heatmaps import Perturbation
from attrib.errors import AttribError
from attrib.explorer.heat import query_heatmaps
from attrib.explorer.numbers import CapturedPass, numbers
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import read
from attrib.forward.residual import residual_writes
from attrib.model.batch import Batch
from attrib.model.continuation import continued, generated_tokens
from attrib.model.prompt_rewriting import apply_rewriters, without
from attrib.model.vlm import VLM

MOST_PROMPT = 48  # prompt positions that can be looked at: the last ones
# What keeps the cost below three generations; `deep` has no limits.
MOST_HEATMAPS = 1  # generated tokens with heatmaps: each costs an attention call per layer
MOST_LENSES = 12  # layers, evenly spaced, of which the lens of visual tokens is taken
LITTLE_NOISE = Perturbation(noise=0.1)  # one draw of it shows what is read


@dataclass(frozen=True, eq=False)
class Observation:
    """The numbers of a page, on the CPU; "query" counts the positions that can be looked at.

    Attributes:
        ids: Tokens of the prompt and of the answer but for its last one.
        batch: The prompt.
        answer: The generated tokens.
        queries: Positions: of prompt tokens, then one per generated token, which it predicts.
        keys: Per query the token in question: the generated one, or the likeliest next one.
        paper: Contributions of (attention, MLP), `attrib.contributions(norm="none")`.
        shares: Shares of the key's logit, `norm="frozen"`; None if the edit hides the writes.
        constants: Shares of the embedding, of writes between layers (an edit's), of biases.
        lens: Likeliest tokens of each layer's output.
        lens_p: Their probabilities.
        key_p: Probability of the key after each layer.
        attention: Attention from each query, mean over heads.
        heat: Heatmaps of the first generated tokens.
        visual_lens: Likeliest token of each visual token's state.
        visual_p: Its probability; NaN in layers without a lens of the visual tokens.
        nearest: Indices into `words` of the words with the most similar states.
        cosine: Their cosines.
        seconds: Of the generation and of the captured pass.
        note: What could not be computed, and why.
    """

    vlm: VLM
    batch: Batch
    ids: list[int]
    answer: list[int]
    queries: list[int]
    keys: list[int]
    paper: Float[np.ndarray, "query layer module"]
    shares: Float[np.ndarray, "query layer module"]
    constants: Float[np.ndarray, "query three"]
    lens: Int[np.ndarray, "query layer top"]
    lens_p: Float[np.ndarray, "query layer top"]
    key_p: Float[np.ndarray, "query layer"]
    attention: Float[np.ndarray, "query layer pos"]
    heat: Float[np.ndarray, "answer layer visual"]
    visual_lens: Int[np.ndarray, "layer visual"]
    visual_p: Float[np.ndarray, "layer visual"]
    nearest: Int[np.ndarray, "layer visual near"]
    cosine: Float[np.ndarray, "layer visual near"]
    seconds: tuple[float, float]
    note: str = ""

    @property
    def first_answer(self) -> int:
        """Index of the first query that predicts a generated token."""
        return len(self.queries) - len(self.answer)

    def places(self, span: str) -> list[int]:
        """Positions of a span of the prompt; none if there is no such span."""
        if span not in self.batch.spans:
            return []
        return self.batch.spans[span][0].nonzero()[:, 0].tolist()

    @property
    def text(self) -> str:
        """The generated answer."""
        return self.vlm.tokenizer.decode(self.answer, skip_special_tokens=True).strip()

    @property
    def words(self) -> list[int]:
        """All positions that are no visual tokens, the answer's among them."""
        visual = set(self.places("visual"))
        return [p for p in range(len(self.ids)) if p not in visual]


@torch.no_grad()
def observe(
    vlm: VLM,
    batch: Batch,
    *,
    edit: Any = None,
    max_new_tokens: int = 16,
    how: Perturbation = LITTLE_NOISE,
    heatmaps: int = MOST_HEATMAPS,
    lenses: int = MOST_LENSES,
) -> Observation:
    """Generate an answer to one prompt and look inside.

    Args:
        vlm: The model.
        batch: One prompt with its images.
        edit: An edit that is applied meanwhile. Text that it puts into the prompt (IKE, LTE) is
            observed, too.
        max_new_tokens: The longest answer.
        how: Perturbation of the heatmaps.
        heatmaps: Number of generated tokens with heatmaps.
        lenses: Number of layers, evenly spaced, with a logit lens of the visual tokens.

    Raises:
        AttribError: Several prompts.
    """
    began = time.perf_counter()
    with _applied(vlm, edit):
        batch = apply_rewriters(vlm._rewriters, batch).batch
        with without(vlm._rewriters):
            answer = generated_tokens(vlm, batch, max_new_tokens)
    generated = time.perf_counter()
    full = continued(vlm, batch, answer[:-1])
    queries = _queries(batch, len(answer))
    passed = _pass(vlm, full, queries, edit, how, min(heatmaps, len(answer)))
    observed = numbers(vlm, full, answer, queries, passed, lenses)
    ended = time.perf_counter()
    return Observation(
        vlm, batch, full.inputs["input_ids"][0].tolist(), answer, queries,
        **observed, seconds=(generated - began, ended - generated),
        note=passed.note,
    )  # fmt: skip


def _applied(vlm: VLM, edit: Any) -> AbstractContextManager[None]:
    return nullcontext() if edit is None else edit.applied(vlm)


def _queries(batch: Batch, length: int) -> list[int]:
    """Positions of the last words of the prompt, then those that predict the answer's tokens."""
    last = int(batch["last"][0].int().argmax())
    words = batch["text"][0].nonzero()[:, 0].tolist()
    return [*[p for p in words if p < last][-MOST_PROMPT:], *range(last, last + length)]


def _pass(
    vlm: VLM, full: Batch, queries: list[int], edit: Any, how: Perturbation, heatmaps: int
) -> CapturedPass:
    """One pass over prompt and answer; without contributions if an edit hides the writes."""
    at = torch.tensor([queries], device=full["last"].device)
    last = int(full["last"][0].int().argmax())
    answer = torch.arange(last, last + heatmaps, device=at.device)[None]
    # An edit of hidden states writes between two layers: the writes of layers are read before.
    outside = hasattr(edit, "sites")

    def run(with_writes: bool, note: str = "") -> CapturedPass:
        with ExitStack() as stack:
            kept = residual_writes(vlm, at) if with_writes else nullcontext()
            writes = stack.enter_context(kept) if outside else None
            stack.enter_context(_applied(vlm, edit))
            stack.enter_context(
                without(vlm._rewriters)
            )  # `full` has the text of an edit of the prompt
            if not outside:
                writes = stack.enter_context(kept)
            rows = stack.enter_context(attention_rows(vlm, at))
            pictured = bool(full["visual"].any()) and heatmaps
            maps = query_heatmaps(vlm, full, answer, how) if pictured else nullcontext({})
            heat = stack.enter_context(maps)
            hidden = stack.enter_context(read(vlm))
            vlm.last_logits(full)
        return CapturedPass(writes, rows, heat, hidden, note)

    if edit is None:
        return run(True)
    try:
        return run(True)
    except AttribError as error:
        return run(False, f"no contributions: {error}")

"""How much each layer's attention and MLP push the key token (VisEdit, Eqs. 1-5, Figs. 1, 5, 6).

The hidden state of the last prompt token is a sum of writes: the embedding, then the output of each
layer's attention and MLP (Eqs. 1 and 2). A write r pushes the key token o* by its logit v and its
probability p,

    p = softmax(r W_U)[o*]                                                         (Eq. 4)
    v = (r W_U)[o*],   M = the largest |v| of an example                           (Eq. 5)
    contribution = sign(v) sqrt(p |v| / M)                                         (Eq. 3)

The paper takes the square root of v / M, which fails for negative v; like the authors' program we
keep the sign outside. That program also applies the final norm before W_U (`norm="final"`): each
write is normalised separately, so small outputs weigh as much as large ones, and logits do not add
up over layers. With the norm's statistics frozen at the true last state they do (`norm="frozen"`,
direct logit attribution).

A logit here is the one before a soft-cap, where a model has one (Gemma 4): the capped logit is not
linear in the hidden state. The result names the cap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.analyses.accuracy import answers_table
from attrib.analyses.attention import attention_table, head_mean
from attrib.analyses.direct_logits import (
    MODULES,
    Key,
    direct_logits_of,
    key_tokens,
    last_writes,
    module_writes,
)
from attrib.analyses.prompts import after_space
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention import attention_rows
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.metrics import exact_match
from attrib.model.answers import answer_ids
from attrib.model.batch import Batch
from attrib.model.precision import normalized
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables
from attrib.vocabulary import Norm

NO_TOKEN = -1
TOKEN = "token:"  # prefix of a word whose first token is the key
MAX_NEW_TOKENS = 12  # longer than any answer of the embedded data


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions and their factors.

    Attributes:
        value: The contribution, as `contributions` returns it.
        logit: v, the key token's logit from the module's output alone.
        probability: p, its probability; 1 for `norm="frozen"`, which has no softmax.
        key: The key token of each example.
        cap: The model's soft-cap, which no logit here has passed; None without one.
    """

    value: Float[Tensor, "batch layer module"]
    logit: Float[Tensor, "batch layer module"]
    probability: Float[Tensor, "batch layer module"]
    key: Int[Tensor, " batch"]
    cap: float | None = None


@torch.no_grad()
def contributions(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Float[Tensor, "batch layer module"]:
    """Contribution of each layer's (attention, MLP) at the last prompt token to the key token.

    Args:
        vlm: The model.
        batch: Prompts with their images.
        key: "argmax", the token that the model predicts; "gold", the first token of the target; or
            one token id per example (a wrong one is the control of VisEdit, Fig. 6).
        norm: "none", the paper: within [-1, 1]. "final", the authors' program: the final norm is
            applied first, also within [-1, 1]. "frozen": shares of the key token's logit, which sum
            to it together with the other terms of `direct_logits`.
    """
    return contribution_parts(vlm, batch, key, norm).value


@torch.no_grad()
def contribution_parts(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Contributions:
    """`contributions` with their logits, probabilities and keys."""
    writes = last_writes(vlm, batch)
    return contributions_of(vlm, writes, key_tokens(vlm, batch, writes, key), norm)


def contributions_of(
    vlm: VLM, writes: ResidualWrites, key: Int[Tensor, " batch"], norm: Norm
) -> Contributions:
    """Contributions of captured writes, without a forward pass."""
    cap = vlm.unembedding.map.cap
    if norm == "frozen":
        shares = direct_logits_of(vlm, writes, key).modules
        return Contributions(shares, shares, torch.ones_like(shares), key, cap)
    if norm not in ("none", "final"):
        raise AttribError(f'norm: expected "none", "final" or "frozen", got {norm!r}')
    modules = module_writes(writes).float()
    has_norm = norm == "final"  # the paper's r W_V has neither norm nor bias
    if has_norm:
        modules = normalized(vlm.components.norm, modules)
    direction, bias = (x.float().to(modules.device) for x in vlm.unembedding.directions(key))
    v = (modules * direction[:, None, None]).sum(-1)
    if has_norm:
        v = v + bias[:, None, None]
    p = (v - vlm.unembedding.log_normalizer(modules, bias=has_norm)).exp()
    largest = v.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return Contributions(v.sign() * (p * v.abs() / largest).sqrt(), v, p, key, cap)


def measure_contributions(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    key: str,
    norm: Norm,
    truths: Mapping[str, str] | None = None,
) -> Tables:
    """Table "contributions" by `choose_key`; with `truths` and key="argmax" `answers_table` too."""
    if (answers := _expected(samples, key)) is not None:
        batch = after_space(vlm, batch, samples, answers)
    writes = last_writes(vlm, batch)
    tables = {"contributions": _table(vlm, batch, samples, writes, key, norm)}
    if key == "argmax" and truths:
        first = key_tokens(vlm, batch, writes, key)
        tables |= {"answers": answers_table(vlm, samples, first, truths)}
    return tables


def measure_demo(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    norm: Norm,
    truth: Callable[[EditSample], str],
) -> Tables:
    """Tables "contributions", "wrong_key" and "attention" of one pass, and "answers".

    `truth` returns the right answer to a sample's request, for `answers`.
    """
    last = batch["last"]
    with residual_writes(vlm, last) as writes, attention_rows(vlm, last) as rows:
        vlm.last_logits(batch)
    generated = vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS)
    truths = [truth(sample) for sample in samples]
    answers = {
        "example": [sample.id for sample in samples],
        "answer": generated,
        "truth": truths,
        "value": exact_match(generated, truths).float().tolist(),
    }
    return {
        "contributions": _table(vlm, batch, samples, writes, "argmax", norm),
        "wrong_key": _table(vlm, batch, samples, writes, "wrong", norm),
        "attention": attention_table(head_mean(vlm, rows), batch, samples),
        "answers": pd.DataFrame(answers),
    }


def choose_key(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], writes: ResidualWrites, key: str
) -> Int[Tensor, " batch"]:
    """One key token per sample; -1 where a sample has none.

    Args:
        vlm: The model.
        batch: The samples' requests.
        samples: Source of the answers.
        writes: Captured in the pass over the batch.
        key: "argmax", the model's prediction; "gold", the target; "token:WORD"; or "wrong", the
            answer to an unrelated question (of the sample's visual, else of its text locality)
            whose first token differs from the model's prediction.
    """
    if (answers := _expected(samples, key)) is not None:
        return _first_tokens(vlm, samples, answers)
    argmax = key_tokens(vlm, batch, writes, "argmax")
    if key == "argmax":
        return argmax
    if key != "wrong":
        raise AttribError(f"key: expected argmax, gold, wrong or token:WORD, got {key!r}")
    wrong = []
    for sample, predicted in zip(samples, argmax.tolist(), strict=True):
        unrelated = (*sample.visual_locality, *sample.text_locality)
        tokens = (vlm.answer_token(r.target) for r in unrelated if r.target.strip())
        wrong.append(next((token for token in tokens if token != predicted), NO_TOKEN))
    return torch.tensor(wrong, device=argmax.device)


def _expected(samples: Sequence[EditSample], key: str) -> list[str] | None:
    """The answers whose first tokens are the keys; None if keys are the model's own."""
    if key == "gold":
        return [sample.request.target for sample in samples]
    if key.startswith(TOKEN) and len(key) > len(TOKEN):
        return [key.removeprefix(TOKEN)] * len(samples)
    return None


def _first_tokens(
    vlm: VLM, samples: Sequence[EditSample], answers: Sequence[str]
) -> Int[Tensor, " batch"]:
    """The first token with content of each answer after its prompt."""
    if empty := [i for i, answer in enumerate(answers) if not answer.strip()]:
        raise AttribError(f"sample {empty[0]} of the batch has no target: use --key argmax")
    pairs = zip(samples, answers, strict=True)
    keys = (answer_ids(vlm.tokenizer, sample.request.prompt, answer) for sample, answer in pairs)
    return torch.tensor([key[0] for key in keys])


def _table(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    writes: ResidualWrites,
    key: str,
    norm: Norm,
) -> pd.DataFrame:
    tokens = choose_key(vlm, batch, samples, writes, key).to(writes.final.device)
    parts = contributions_of(vlm, writes, tokens.clamp(min=0), norm)
    ids = [sample.id for sample in samples]
    table = tidy(
        parts.value.cpu().numpy(), example=ids, layer=range(vlm.num_layers), module=MODULES
    )
    rows_each = vlm.num_layers * len(MODULES)
    table = table.assign(
        logit=parts.logit.cpu().double().numpy().ravel(),
        probability=parts.probability.cpu().double().numpy().ravel(),
        key=np.repeat(vlm.tokenizer.batch_decode(tokens.clamp(min=0)[:, None].tolist()), rows_each),
    )
    return table.loc[np.repeat((tokens != NO_TOKEN).cpu().numpy(), rows_each)]

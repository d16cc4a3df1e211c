"""How far each layer's attention and MLP push the key token (VisEdit, Eqs. 1-5, Figs. 1, 5 and 6).

The hidden state of the last prompt token is a sum of writes: the embedding, then the output of
each layer's attention and MLP. A write r speaks for the key token o* through its logit v and its
probability p,

    v = (r W_U)[o*],   p = softmax(r W_U)[o*],   M = the largest |v| of an example (Eq. 5)
    contribution = sign(v) sqrt(p |v| / M)                                         (Eq. 3)

The paper takes the root of v / M as it is, which a negative v does not have; like the authors'
program we keep the sign outside. That program also puts the final norm before W_U (`norm="final"`):
every write then speaks at full volume, and logits no longer add up over layers. With the norm's
statistics frozen at the true last state they do add up (`norm="frozen"`, direct logit attribution).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from attrib.analyses.attention import attention_table, head_mean
from attrib.analyses.direct_logits import (
    MODULES,
    Key,
    direct_logits_of,
    key_tokens,
    last_writes,
    module_writes,
    unembedding,
)
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention import attention_rows
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.metrics import exact_match
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collect import Tables

NO_TOKEN = -1
TOKEN = "token:"  # in front of a word that stands for its first token
MAX_NEW_TOKENS = 12  # longer than any answer of the embedded data
Norm = Literal["none", "final", "frozen"]


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions and what they are made of.

    Attributes:
        value: the contribution, as `contributions` returns it.
        logit: v, the key token's logit read from the module's output alone.
        probability: p, its probability; one for `norm="frozen"`, where no share has a softmax.
        key: the key token of each example.
    """

    value: Float[Tensor, "batch layer module"]
    logit: Float[Tensor, "batch layer module"]
    probability: Float[Tensor, "batch layer module"]
    key: Int[Tensor, " batch"]


@torch.no_grad()
def contributions(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Float[Tensor, "batch layer module"]:
    """Contribution of each layer's (attention, MLP) at the last prompt token to the key token.

    Args:
        vlm: the model.
        batch: prompts with their images.
        key: "argmax", the token the model predicts; "gold", the first token of the batch's target;
            or one token id per example (a wrong one is the control of VisEdit, Fig. 6).
        norm: "none", the paper: within [-1, 1]. "final", the authors' program: the final norm
            first, likewise within [-1, 1]. "frozen": shares of the key token's logit, in logits;
            together with the rest of `direct_logits` they sum to it.
    """
    return contribution_parts(vlm, batch, key, norm).value


@torch.no_grad()
def contribution_parts(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Contributions:
    """What `contributions` returns, with the logits, probabilities and keys it is made of."""
    writes = last_writes(vlm, batch)
    return contributions_of(vlm, writes, key_tokens(vlm, batch, writes, key), norm)


def contributions_of(
    vlm: VLM, writes: ResidualWrites, key: Int[Tensor, " batch"], norm: Norm
) -> Contributions:
    """Contributions of captured writes; no forward pass."""
    if norm == "frozen":
        shares = direct_logits_of(vlm, writes, key).modules
        return Contributions(shares, shares, torch.ones_like(shares), key)
    if norm not in ("none", "final"):
        raise AttribError(f'norm: expected "none", "final" or "frozen", got {norm!r}')
    modules, weight = module_writes(writes), unembedding(vlm)
    logit, logp = [], []
    for layer in range(vlm.num_layers):  # layer by layer: a vocabulary is wide
        write = modules[:, layer]
        # The paper's r W_V has neither norm nor bias.
        logits = vlm.unembed(write).float() if norm == "final" else linear(write.float(), weight)
        logit.append(_at(logits, key))
        logp.append(logit[-1] - logits.logsumexp(-1))
    v, p = torch.stack(logit, 1), torch.stack(logp, 1).exp()
    largest = v.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return Contributions(v.sign() * (p * v.abs() / largest).sqrt(), v, p, key)


def _at(
    logits: Float[Tensor, "batch module d_vocab"], key: Int[Tensor, " batch"]
) -> Float[Tensor, "batch module"]:
    return logits.gather(-1, key[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]


def measure_contributions(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], *, key: str, norm: Norm
) -> Tables:
    """The table "contributions"; see `choose_key` for what `key` may be."""
    writes = last_writes(vlm, batch)
    return {"contributions": _contributions(vlm, batch, samples, writes, key, norm)}


def measure_first_report(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    norm: Norm,
    truth: Callable[[EditSample], str],
) -> Tables:
    """The tables "contributions", "wrong_key" and "attention" of one pass, and "answers".

    `truth` tells the right answer to a sample's request, which `answers` compares with.
    """
    last = batch["last"]
    with residual_writes(vlm, last) as writes, attention_rows(vlm, last) as rows:
        vlm.logits(batch)
    said = vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS)
    truths = [truth(sample) for sample in samples]
    answers = {
        "example": [sample.id for sample in samples],
        "answer": said,
        "truth": truths,
        "value": exact_match(said, truths).float().tolist(),
    }
    return {
        "contributions": _contributions(vlm, batch, samples, writes, "argmax", norm),
        "wrong_key": _contributions(vlm, batch, samples, writes, "wrong", norm),
        "attention": attention_table(head_mean(vlm, rows), batch, samples),
        "answers": pd.DataFrame(answers),
    }


def choose_key(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], writes: ResidualWrites, key: str
) -> Int[Tensor, " batch"]:
    """One key token per sample; -1 where a sample has none.

    Args:
        vlm: the model.
        batch: the samples' requests.
        samples: where answers come from.
        writes: of the pass over the batch.
        key: "argmax", what the model says; "gold", the target; "token:WORD"; or "wrong", the
            answer to an unrelated question (of the sample's visual, else of its text locality)
            that starts with another token than what the model says, if there is one.
    """
    if key == "gold":
        return _first_tokens(vlm, [sample.request.target for sample in samples])
    if key.startswith(TOKEN) and len(key) > len(TOKEN):
        return _first_tokens(vlm, [key.removeprefix(TOKEN)] * len(samples))
    argmax = key_tokens(vlm, batch, writes, "argmax")
    if key == "argmax":
        return argmax
    if key != "wrong":
        raise AttribError(f"key: expected argmax, gold, wrong or token:WORD, got {key!r}")
    rights = argmax.tolist()
    return torch.tensor(
        [_wrong_token(vlm, sample, right) for sample, right in zip(samples, rights, strict=True)],
        device=argmax.device,
    )


def _wrong_token(vlm: VLM, sample: EditSample, right: int) -> int:
    unrelated = (*sample.visual_locality, *sample.text_locality)
    tokens = (vlm.answer_token(request.target) for request in unrelated)
    return next((token for token in tokens if token != right), NO_TOKEN)


def _first_tokens(vlm: VLM, answers: Sequence[str]) -> Int[Tensor, " batch"]:
    if empty := [i for i, answer in enumerate(answers) if not answer.strip()]:
        raise AttribError(f"sample {empty[0]} of the batch has no target: use --key argmax")
    return torch.tensor([vlm.answer_token(answer) for answer in answers])


def _contributions(
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
        logit=parts.logit.double().cpu().numpy().ravel(),
        probability=parts.probability.double().cpu().numpy().ravel(),
        key=np.repeat(vlm.tokenizer.batch_decode(tokens.clamp(min=0)[:, None].tolist()), rows_each),
    )
    return table.loc[np.repeat((tokens != NO_TOKEN).cpu().numpy(), rows_each)]

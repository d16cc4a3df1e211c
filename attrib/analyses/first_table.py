"""The analyses as tables over samples: one forward pass per batch, whatever is asked of it."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.analyses.attention import STATISTICS, attention, head_mean, profile
from attrib.analyses.contributions import (
    MODULES,
    Norm,
    contributions_of,
    key_tokens,
    last_writes,
)
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import attention_rows
from attrib.forward.residual import ResidualWrites
from attrib.forward.residual_writes import residual_writes
from attrib.metrics import exact_match
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy

Tables = dict[str, pd.DataFrame]
NO_TOKEN = -1
TOKEN = "token:"  # in front of a word that stands for its first token
MAX_NEW_TOKENS = 12  # longer than any answer of the embedded data


def measure_contributions(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], *, key: str, norm: Norm
) -> Tables:
    """The table "contributions"; see `choose_key` for what `key` may be."""
    writes = last_writes(vlm, batch)
    return {"contributions": _contributions(vlm, batch, samples, writes, key, norm)}


def measure_attention(vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> Tables:
    """The table "attention"."""
    return {"attention": _attention(attention(vlm, batch), batch, samples)}


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
        "attention": _attention(head_mean(vlm, rows), batch, samples),
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


def _attention(
    rows: Float[Tensor, "batch layer pos"], batch: Batch, samples: Sequence[EditSample]
) -> pd.DataFrame:
    ids = [sample.id for sample in samples]
    values = profile(rows, batch).cpu().numpy()
    return tidy(values, example=ids, layer=range(rows.shape[1]), statistic=STATISTICS)

"""Whether the model gives the right answers: each judged as a whole, teacher-forced.

An answer is right if each of its tokens with content is the likeliest one after those before it.
Blank tokens, which many tokenizers write before an answer, are fed and not judged: they are the
same for all answers.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.data import EditData, EditSample
from attrib.data.loading import SCENES
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.metrics import exact_match, normalise
from attrib.model.answers import target_ids, without_blank
from attrib.model.vlm import VLM


def right_answers(samples: Sequence[EditSample]) -> dict[str, str]:
    """The right answer to each sample's request, by the sample's id, as it follows the prompt.

    It is the target. In the embedded scenes the target is the answer after an edit; the right one
    is the field `pred`. Samples without an answer, and scenes whose prompt already holds words of
    the edit's answer that are not the right ones, are left out.
    """
    if not (isinstance(samples, EditData) and samples.name in SCENES):
        given = {sample.id: sample.request.target for sample in samples}
    else:
        words = samples.provenance.get("answer_prefix", 0)
        given = {sample.id: _after_prefix(sample, words) for sample in samples}
    return {name: answer for name, answer in given.items() if answer.strip()}


def _after_prefix(sample: EditSample, words: int) -> str:
    """The right answer without its first words, which end the prompt; "" if others do."""
    *prefix, rest = sample.meta["pred"].split(maxsplit=words) or [""]
    fed = sample.request.prompt.split()[-words:] if words else []
    return rest if prefix == fed else ""


@torch.no_grad()
def answers_table(
    vlm: VLM, samples: Sequence[EditSample], first: Int[Tensor, " batch"], truths: Mapping[str, str]
) -> pd.DataFrame:
    """One row per sample with a known answer: example, answer, truth, and 1 if they are equal.

    Only where `first` leaves it open the model runs again: where the answer has further tokens.

    Args:
        vlm: The model.
        samples: Those of a batch.
        first: The model's likeliest token after each prompt.
        truths: The right answers by id; one that cannot follow its prompt is left out.
    """
    said: dict[str, tuple[str, str]] = {}  # the model's answer, and the right one
    longer: list[EditSample] = []
    for sample, token in zip(samples, first.tolist(), strict=True):
        try:
            ids = target_ids(vlm.tokenizer, sample.request.prompt, truths[sample.id])
        except (AttribError, KeyError):
            continue
        one, wanted = (vlm.tokenizer.decode([i]) for i in (token, ids[0]))
        if wanted.strip() and (len(ids) == 1 or normalise(one) != normalise(wanted)):
            said[sample.id] = one, vlm.tokenizer.decode(ids)
        else:
            longer.append(sample)
    said |= _teacher_forced(vlm, longer, truths)
    rows = [(s.id, *said[s.id]) for s in samples if s.id in said]
    table = pd.DataFrame(rows, columns=["example", "answer", "truth"])
    right = exact_match(table["answer"].tolist(), table["truth"].tolist())
    return table.assign(value=right.float().numpy())


def _teacher_forced(
    vlm: VLM, samples: Sequence[EditSample], truths: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """The likeliest tokens at the places of the right answer, and that answer, by sample."""
    if not samples:
        return {}
    requests = [sample.request for sample in samples]
    images, prompts = [r.image for r in requests], [r.prompt for r in requests]
    try:
        batch = vlm.encode(images, prompts, [truths[sample.id] for sample in samples])
    except AttribError:  # too long for the model, for example: that one has no judgement
        each = [] if len(samples) == 1 else samples
        return {k: v for s in each for k, v in _teacher_forced(vlm, [s], truths).items()}
    last, labels = vlm.num_layers - 1, batch.labels
    assert labels is not None
    with read(vlm, [last]) as hidden:
        vlm.last_logits(batch)
    found = {}
    for sample, h, row in zip(samples, hidden[last], labels, strict=True):
        asked = row != -100
        wanted = without_blank(vlm.tokenizer, row[asked].tolist())
        guessed = vlm.unembed_float32(h[asked.to(h.device)]).argmax(-1).tolist()[-len(wanted) :]
        found[sample.id] = vlm.tokenizer.decode(guessed), vlm.tokenizer.decode(wanted)
    return found

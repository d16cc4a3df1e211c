"""What LTE is trained on: the new answer behind the edit's text, the old one to all else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.base import encode_requests
from editors.context.prompt_edit import Starts, fact_of, front, in_front
from editors.methods.adapter_objective import AdapterObjective, Tokens
from editors.methods.lora import AllLayers, LowRank
from editors.prefix.cached_dataset import CachedDataset, requests_of
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.losses import LOCALITY, ROLES, Weights, asked_roles


@dataclass(frozen=True, eq=False)
class Asked:
    """An input of an edit, as it is asked.

    Attributes:
        request: The input.
        text: What stands in front of it.
        role: As an index of `ROLES`.
        final: The unedited model's last states where an answer is asked for, without the text.
    """

    request: EditRequest
    text: str
    role: int
    final: Float[Tensor, "asked d_model"]


class LTEObjective(AdapterObjective):
    """The loss of a decoder that is to follow an edit in its prompt (LTE, as in LiveEdit's code).

    Locality is compared with the original weights, half of it with the edit's text in front and
    half without.

    Args:
        vlm: The model; its own weights stay as they are.
        change: What is trained.
        samples: By name, all edits.
        data: The original model's last states, of edits to train on.
        held_out: Those of edits to validate on.
        weights: Of the parts of the loss.
        template: What stands in front of a question, with "{fact}" for the edit.
        batch_size: Edits in a pass over held-out data.
    """

    def __init__(
        self,
        vlm: VLM,
        change: LowRank | AllLayers,
        samples: Mapping[str, EditSample],
        data: CachedDataset,
        held_out: CachedDataset,
        weights: Weights,
        template: str,
        batch_size: int = 8,
    ):
        self.vlm, self.module, self.samples = vlm, change, samples
        self.data, self.held_out = data, held_out
        self.weights, self.template, self.batch_size = weights, template, batch_size
        self.roles = [role for role in ROLES if weights.of(role)]
        self.starts = Starts.of(vlm)

    def tokens(
        self,
        data: CachedDataset | StreamedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """Logits, edited and clean, labels and roles at all answer tokens of some edits."""
        data, items = data.load(items)
        asked = [one for item in items for one in self._asked(data, item, roles or self.roles)]
        # Inputs with and without an image differ in length: apart, they need less padding.
        parts = [
            [a for a in asked if (a.request.source is None) == alone] for alone in (False, True)
        ]
        found = [self._answers(part) for part in parts if part]
        return {name: torch.cat([tokens[name] for tokens in found]) for name in found[0]}

    def _asked(self, data: CachedDataset, item: int, roles: Sequence[str]) -> list[Asked]:
        sample = self.samples[data.ids[item]]
        text = self.template.format(fact=fact_of(sample.request))
        found = []
        for role in roles:
            kept = data.inputs[item].get(role, ())
            for request, query in zip(requests_of(sample, role), kept, strict=True):
                for shown in (text, "") if role in LOCALITY else (text,):
                    found.append(Asked(request, shown, ROLES.index(role), query.final))
        return found

    def _answers(self, asked: Sequence[Asked]) -> Tokens:
        vlm, requests = self.vlm, [one.request for one in asked]
        batch = encode_requests(vlm, requests, padding_side="right")
        tokens = [front(vlm, one.text) for one in asked]
        with vlm.rewrite_prompts(lambda given: in_front(vlm, given, self.starts, tokens)):
            logits = self.module.run(vlm, lambda: vlm.logits(batch))
        with torch.no_grad():
            clean = vlm.unembed(torch.cat([one.final for one in asked]))
        assert batch.labels is not None
        at = batch.labels != IGNORE_INDEX
        roles = torch.tensor([one.role for one in asked], device=at.device)
        return {
            "logits": logits[at],
            "clean": clean,
            "labels": batch.labels[at],
            "roles": asked_roles(batch.labels, roles),
        }

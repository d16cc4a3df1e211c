"""The objective of LTE: new answers behind the edit's text, old answers for all other inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.model.batch import IGNORE_INDEX
from editors.base import encode_requests
from editors.context.prompt_edit import PromptStarts, fact_of, prepend_to_prompts, text_tokens
from editors.methods.lora import AllLayers, LowRank
from editors.methods.objective import EditObjective
from editors.prefix.cached_dataset import CachedDataset, PrefixRows
from editors.training.losses import LOCALITY, ROLES

NO_EDIT = -1


@dataclass(eq=False)
class LTEObjective(EditObjective):
    """The loss of a decoder that learns to follow an edit in its prompt (LTE, LiveEdit's code).

    Locality is compared with the original weights, once with the edit's text in front and once
    without.

    Attributes:
        change: What is trained.
    """

    batch_size: ClassVar[int] = 8

    change: LowRank | AllLayers

    def __post_init__(self):
        self.module = self.change
        self.starts = PromptStarts.of(self.vlm)

    def edits(self, data: CachedDataset, items: Sequence[int]) -> list[str]:
        """The texts of some edits."""
        facts = [fact_of(data.edits[item].request) for item in items]
        return [self.config.template.format(fact=fact) for fact in facts]

    def rows(self, data: CachedDataset, items: Sequence[int], roles: Sequence[str]) -> PrefixRows:
        """The inputs of some edits, those of locality once more without the edit's text."""
        rows = super().rows(data, items, roles)
        local = torch.tensor([ROLES[role] in LOCALITY for role in rows.role_of.tolist()])
        index = torch.arange(len(rows.inputs)).repeat_interleave(1 + local.long())
        is_copy = torch.zeros(len(index), dtype=torch.bool)
        is_copy[1:] = index[1:] == index[:-1]
        return PrefixRows(
            [rows.inputs[i] for i in index.tolist()],
            torch.where(is_copy, NO_EDIT, rows.edit_of[index]),
            rows.role_of[index],
        )

    def logits(self, rows: PrefixRows, edits: Sequence[str]) -> Float[Tensor, "token d_vocab"]:
        """Logits of the changed decoder at the answer tokens, row by row."""
        vlm = self.vlm
        batch = encode_requests(vlm, [q.request for q in rows.inputs], padding_side="right")
        assert batch.labels is not None
        texts = ["" if i == NO_EDIT else edits[int(i)] for i in rows.edit_of.tolist()]
        tokens = [text_tokens(vlm, text) for text in texts]
        with vlm.rewrite_prompts(lambda given: prepend_to_prompts(vlm, given, self.starts, tokens)):
            logits = self.change.run(vlm, lambda: vlm.logits(batch))
        return logits[batch.labels != IGNORE_INDEX]

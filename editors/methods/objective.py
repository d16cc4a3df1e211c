"""The loss of an editor on edits: what the objectives of all trained editors share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.training.dataset import CachedDataset, PrefixRows, StoredDataset, StreamedDataset
from editors.training.losses import ROLES, LossWeights, Tokens, answer_losses, token_accuracy
from editors.training.objective import Objective

Part = tuple[float, int]  # the mean of a part, and how many it is of


@dataclass(eq=False)
class EditObjective(Objective):
    """Cross-entropy of the new answers and KL of the unrelated ones (VisEdit Eqs. 12-15).

    Subclasses set `module`, and define how an edit is made (`edits`) and what the edited model
    predicts (`logits`).

    Attributes:
        vlm: The frozen model.
        data: Inputs to train on, run up to some layer.
        held_out: Inputs to validate on.
        config: Weights of the loss terms, and other options.
        batch_size: Edits per pass over held-out data.
    """

    batch_size: ClassVar[int] = 16

    vlm: VLM
    data: CachedDataset | StreamedDataset
    held_out: CachedDataset
    config: Any  # the editor's own subclass of `TrainingConfig`

    @property
    def weights(self) -> LossWeights:
        """Weights of the loss terms."""
        return self.config

    @property
    def roles(self) -> list[str]:
        """The kinds of input that are trained on."""
        return self.weights.roles

    @abstractmethod
    def edits(self, data: CachedDataset, items: Sequence[int]) -> Any:
        """What the edited model needs of some edits."""

    @abstractmethod
    def logits(self, rows: PrefixRows, edits: Any) -> Float[Tensor, "token d_vocab"]:
        """Edited logits at the answer tokens of some inputs, row by row."""

    @property
    def num_items(self) -> int:
        """Number of edits to train on."""
        return len(self.data)

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss on some edits."""
        del rng  # nothing is random here but the edits
        return answer_losses(**self.tokens(self.data, items), weights=self.weights)

    def expect(self, items: Sequence[int]) -> None:
        """Begin to read the inputs of the next step, where they are in files."""
        if isinstance(self.data, StoredDataset):
            self.data.files.expect(items)

    def shares(self, some: Sequence[int], items: Sequence[int]) -> dict[str, float]:
        """Share of the answer tokens of `items` that `some` of them have, by role."""
        return self.data.shares(some, items, self.roles)

    def validation(self) -> dict[str, float]:
        """The loss on held-out edits, and the accuracy of answer tokens per role.

        Both are means over all answer tokens of a role, however the edits are batched.
        """
        terms: dict[str, list[Part]] = {}
        shares: dict[str, list[Part]] = {}
        for items in self.held_out_batches():
            tokens = self.tokens(self.held_out, items)
            counts = tokens["roles"].bincount(minlength=len(ROLES)).tolist()
            sizes: dict[str, int] = dict(zip(ROLES, counts, strict=True))
            for name, value in answer_losses(**tokens, weights=self.weights).items():
                terms.setdefault(name, []).append((value.item(), sizes[name]))
            for name, value in token_accuracy(**tokens).items():
                shares.setdefault(name, []).append((value, sizes[name]))
        loss = sum(map(mean_of_parts, terms.values()))
        return {"loss": loss} | {name: mean_of_parts(parts) for name, parts in shares.items()}

    def held_out_batches(self) -> list[range]:
        """The held-out edits in batches."""
        num = len(self.held_out)
        starts = range(0, num, self.batch_size)
        return [range(start, min(start + self.batch_size, num)) for start in starts]

    def tokens(
        self,
        data: CachedDataset | StreamedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """Logits, edited and clean, labels and roles at all answer tokens of some edits.

        Args:
            data: The inputs.
            items: Which edits.
            roles: The kinds of input; by default those that are trained on.
        """
        data, items = data.load(items)
        return self.tokens_with(self.edits(data, items), data, items, roles)

    def tokens_with(
        self,
        edits: Any,
        data: CachedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """As `tokens`, given the `edits` of the items."""
        rows = self.rows(data, items, self.roles if roles is None else roles)
        # Inputs with and without an image differ in length: apart they need less padding.
        parts = [part for part in (rows.where(True), rows.where(False)) if part.inputs]
        found = [self._tokens(part, edits) for part in parts]
        return {name: torch.cat([tokens[name] for tokens in found]) for name in found[0]}

    def rows(self, data: CachedDataset, items: Sequence[int], roles: Sequence[str]) -> PrefixRows:
        """The inputs of some edits."""
        return data.rows(items, roles)

    def _tokens(self, rows: PrefixRows, edits: Any) -> Tokens:
        logits = self.logits(rows, edits)  # others follow to its device, if there are several
        labels = torch.cat([one.labels[one.labels != IGNORE_INDEX] for one in rows.inputs])
        counts = torch.tensor([one.num_asked for one in rows.inputs])
        return {
            "logits": logits,
            "clean": self._clean(rows, logits),
            "labels": labels.to(logits.device),
            "roles": rows.role_of.repeat_interleave(counts).to(logits.device),
        }

    @torch.no_grad()
    def _clean(self, rows: PrefixRows, logits: Tensor) -> Tensor:
        """Unedited logits at the answer tokens; NaN for inputs that did not run to the end."""
        finals = [one.final for one in rows.inputs]
        clean = torch.full_like(logits, torch.nan)
        if known := [final for final in finals if final is not None]:
            ran = [torch.full((one.num_asked,), one.final is not None) for one in rows.inputs]
            clean[torch.cat(ran).to(clean.device)] = self.vlm.unembed(torch.cat(known)).to(clean)
        return clean


def mean_of_parts(parts: Sequence[Part]) -> float:
    """The mean of all, from the means of parts."""
    means, sizes = zip(*parts, strict=True)
    return float(np.average(means, weights=sizes))

"""The training data of adapters: every input of every edit, run up to the first site once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.prefix.states import PrefixStates, prefix_states
from editors.training.losses import ROLES


@dataclass(frozen=True, eq=False)
class CachedDataset:
    """Inputs by edit and role.

    Attributes:
        ids: The samples' names.
        edits: The request of each sample, with its states at every site.
        inputs: The queries of each sample, by role; the request is among them.
    """

    ids: list[str]
    edits: list[PrefixStates]
    inputs: list[dict[str, list[PrefixStates]]]

    def __len__(self) -> int:
        return len(self.edits)

    def load(self, items: Sequence[int]) -> "tuple[CachedDataset, list[int]]":
        """Data that holds some edits, and where in it they are."""
        return self, list(items)

    def shares(
        self, some: Sequence[int], items: Sequence[int], roles: Sequence[str]
    ) -> dict[str, float]:
        """Which share of the answer tokens of `items` is in `some` of them, by role."""
        tokens = {role: [self._num_tokens(i, role) for i in items] for role in roles}
        mine = {role: sum(self._num_tokens(i, role) for i in some) for role in roles}
        return {role: mine[role] / sum(n) for role, n in tokens.items() if any(n)}

    def sample_edits(self) -> list[PrefixStates]:
        """Enough edits to take statistics from: all."""
        return self.edits

    @property
    def num_bytes(self) -> int:
        """Of all states; what calls of layers share is not counted."""
        inputs = [q for roles in self.inputs for some in roles.values() for q in some]
        return sum(q.num_bytes for q in inputs)

    def _num_tokens(self, item: int, role: str) -> int:
        """Answer tokens of an edit's inputs of a role."""
        return sum(len(query.final) for query in self.inputs[item].get(role, ()))

    def split(self, num: int) -> "tuple[CachedDataset, CachedDataset]":
        """The first `num` edits, and the others."""
        return (
            CachedDataset(self.ids[:num], self.edits[:num], self.inputs[:num]),
            CachedDataset(self.ids[num:], self.edits[num:], self.inputs[num:]),
        )

    def of(self, items: Sequence[int], roles: Sequence[str]) -> "Rows":
        """The inputs of some samples that have one of the `roles`."""
        inputs, edit_of, role_of = [], [], []
        for number, item in enumerate(items):
            for role in roles:
                for query in self.inputs[item].get(role, ()):
                    inputs.append(query)
                    edit_of.append(number)
                    role_of.append(ROLES.index(role))
        return PrefixRows(inputs, torch.tensor(edit_of), torch.tensor(role_of))


@dataclass(frozen=True, eq=False)
class PrefixRows:
    """Queries, each with the number of the edit it belongs to and its role."""

    inputs: list[PrefixStates]
    edit_of: Int[Tensor, " batch"]
    role_of: Int[Tensor, " batch"]

    def where(self, has_image: bool) -> "Rows":
        """Those with, or those without an image."""
        some = [bool(q.spans["visual"].any()) == has_image for q in self.inputs]
        at = torch.tensor(some, dtype=torch.bool)
        kept = [q for q, keep in zip(self.inputs, some, strict=True) if keep]
        return PrefixRows(kept, self.edit_of[at], self.role_of[at])


def cache_dataset(
    vlm: VLM,
    samples: Sequence[EditSample],
    *,
    first: Sequence[int],
    signals: Sequence[int],
    roles: Sequence[str] = ROLES,
    silent: bool = False,
) -> CachedDataset:
    """Run all inputs of the samples, keeping their states.

    Args:
        vlm: The model.
        samples: The edits.
        first: Layers from which they are to be run on.
        signals: Layers at which the states of the edits themselves are wanted.
        roles: Which inputs.
        silent: Whether not to say how far it is.

    Raises:
        AttribError: There is no sample.
    """
    if not samples:
        raise AttribError("there is no sample to train on; see the quarantined rows")
    asked = [
        (number, role, request)
        for number, sample in enumerate(samples)
        for role in roles
        for request in requests_of(sample, role)
    ]
    is_edit = [role == "request" for _, role, _ in asked]
    edits = [request for _, role, request in asked if role == "request"]
    others = [request for _, role, request in asked if role != "request"]
    called = (None, None) if silent else ("inputs of the edits", "edits")
    ran = iter(prefix_states(vlm, others, first, what=called[0]))
    installed = prefix_states(vlm, edits, sorted({*first, *signals}), what=called[1])
    left = iter(installed)
    inputs: list[dict[str, list[PrefixStates]]] = [{} for _ in samples]
    for (number, role, _), edit in zip(asked, is_edit, strict=True):
        inputs[number].setdefault(role, []).append(next(left) if edit else next(ran))
    return CachedDataset([s.id for s in samples], installed, inputs)


def requests_of(sample: EditSample, role: str) -> list[EditRequest]:
    """The inputs of a sample that have a role."""
    return [sample.request] if role == "request" else getattr(sample, role)

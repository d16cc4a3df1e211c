"""How many of a step's answer tokens belong to some of its edits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from attrib.data.samples import EditRequest
from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM


class AnswerShares(ABC):
    """Inputs by edit and role, of which the answer tokens are counted."""

    @abstractmethod
    def num_tokens(self, item: int, role: str) -> int:
        """Answer tokens of an edit's inputs of a role."""

    def shares(
        self, some: Sequence[int], items: Sequence[int], roles: Sequence[str]
    ) -> dict[str, float]:
        """Share of the answer tokens of `items` that belong to `some` of them, by role."""
        tokens = {role: sum(self.num_tokens(i, role) for i in items) for role in roles}
        mine = {role: sum(self.num_tokens(i, role) for i in some) for role in roles}
        return {role: mine[role] / num for role, num in tokens.items() if num}


def num_answer_tokens(vlm: VLM, request: EditRequest) -> int:
    """Tokens of a request's target; no image is opened unless the prompt has no text."""
    images = None if request.prompt.strip(" ") else request.image
    labels = vlm.encode([images], [request.prompt], [request.target]).labels
    assert labels is not None
    return int((labels != IGNORE_INDEX).sum())

"""What the training loop needs of what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn


class Objective(ABC):
    """A module and its loss.

    Attributes:
        module: The module that is trained.
    """

    module: nn.Module

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Number of training items."""

    @abstractmethod
    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss on some items; the trainer minimises their sum."""

    @abstractmethod
    def validation(self) -> dict[str, float]:
        """Metrics on held-out items; "loss" is one of them."""

    def after_validation(self, metrics: Mapping[str, float]) -> None:
        """Change a schedule that depends on the metrics; nothing by default."""
        del metrics

    def expect(self, items: Sequence[int]) -> None:
        """Called with the items of the next step once those of a step are read."""
        del items

    def shares(self, some: Sequence[int], items: Sequence[int]) -> dict[str, float]:
        """Share of each term of the loss on `items` that is due to `some` of them.

        Terms that are left out are means over items.
        """
        del some, items
        return {}

"""Options of analyses that add noise, and can be asked about some of the layers alone."""

import re
from typing import Annotated, Any

from pydantic import field_validator
from typer import Option

from attrib.cli.options import PANEL, AnalysisOptions


class LayerOptions(AnalysisOptions):
    """Which layers, and which noise."""

    layers: Annotated[
        str | None,
        Option(help="Such as 0,4,8-11.", show_default="all", rich_help_panel=PANEL),
    ] = None
    seed: Annotated[int, Option(help="Seed of the noise and of the bootstrap intervals.")] = 0

    @field_validator("layers", mode="before")
    @classmethod
    def _plain_layers(cls, given: Any) -> str | None:
        # One spelling for the same layers, because they tell runs apart.
        return None if given is None else ",".join(map(str, parse_layers(given)))

    def layer_list(self) -> list[int] | None:
        """The layers asked for, in ascending order; None for all."""
        return None if self.layers is None else parse_layers(self.layers)


def parse_layers(given: Any) -> list[int]:
    """Layers from "0,4,8-11" or from the list that a YAML file holds, in ascending order.

    Raises:
        ValueError: for anything else.
    """
    text = given if isinstance(given, str) else ",".join(map(str, given))
    layers = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise ValueError(f"expected layers such as 0,4,8-11, got {given!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise ValueError(f"expected layers such as 0,4,8-11, got {part.strip()!r}")
        layers += range(first, last + 1)
    return sorted(set(layers))

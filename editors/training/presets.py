"""Named configurations of editors: what they set, where that comes from, what still differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Names of earlier versions.
OLD_PRESETS = {"embedded": "tuned-small", "embedded_phrases": "tuned-small-phrases"}
RETIRED = {
    "published": "it followed neither a paper nor a program; auto, without a preset, is what it was"
}


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        source: The paper or program that it follows, or what it was tuned on.
        options: Options that differ from the defaults.
        deviations: What still differs from the source: by topic, what is done here instead.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    deviations: Mapping[str, str] = field(default_factory=dict)

    def with_options(self, **options: Any) -> "Preset":
        """A copy with further options."""
        return Preset(self.source, {**self.options, **options}, self.deviations)


TUNED = "tuned here on validation edits of `tiny-llava` (LOG)"
TUNED_SMALL, TUNED_PHRASES = "tuned-small", "tuned-small-phrases"
TUNED_WIDE = "tuned-small-wide"

"""Which questions an edit is about: SERAC's scope classifier as a gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import pad_states
from editors.gating.inputs import COVERED
from editors.gating.threshold import calibrate, gate_scores
from editors.methods.serac_networks import Scope

VECTOR = "vector"
Example = tuple[Tensor, Mapping[str, Tensor]]  # states "pos d_model", spans " pos"


@dataclass(frozen=True, eq=False)
class ScopeGate:
    """Opens where the classifier takes a prompt for one that an edit is about.

    Attributes:
        net: Makes vectors of prompts.
        layer: Whose output it reads.
        threshold: Score from which on it opens.
        record: How the threshold was found; JSON.
    """

    name: ClassVar[str] = "scope"

    net: Scope
    layer: int
    threshold: float
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    @torch.no_grad()
    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Per example the vector of its prompt; targets are not looked at."""
        h = hidden[self.layer]
        spans = {name: batch.spans[name].to(h.device) for name in ("text", "last", "visual")}
        rows = [(h[i], {name: span[i] for name, span in spans.items()}) for i in range(len(h))]
        return [{VECTOR: vector} for vector in vectors(self.net, rows)]

    @torch.no_grad()
    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Scores of the classifier, symmetric in query and edit."""
        one, other = (torch.stack([s[VECTOR] for s in some]) for some in (queries, edits))
        return self.net.scores(one, other.to(one))

    def calibrated(self, vlm: VLM, samples: Sequence[EditSample]) -> "ScopeGate":
        """The same with a threshold from training edits: most inputs served, fewest falsely.

        Each kind of input counts the same. Without unrelated inputs the threshold is what the
        classifier learned as the score of no edit.
        """
        table = gate_scores(vlm, samples, self)
        by = {str(name): some["value"].to_numpy() for name, some in table.groupby("relation")}
        covered = {name: values for name, values in by.items() if name in COVERED}
        others = {name: values for name, values in by.items() if name not in COVERED}
        if not others:
            return replace(self, threshold=self.net.none.item(), record={"rule": "as learned"})
        found = calibrate(covered, others)
        return replace(self, threshold=found.threshold, record=found.record())


def vectors(net: Scope, examples: Sequence[Example]) -> Float[Tensor, "batch axis"]:
    """The vectors of prompts, given their states at the layer that is read."""
    words, real = pad_states([h[spans["text"] | spans["last"]] for h, spans in examples])
    images = [h[spans["visual"]].float() for h, spans in examples]
    has_image = torch.tensor([len(image) > 0 for image in images], device=words.device)
    means = [image.sum(0) / max(1, len(image)) for image in images]
    return net(words, real, torch.stack(means), has_image)

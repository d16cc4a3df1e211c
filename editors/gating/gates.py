"""Gates: which of the edits, if any, an input is served (DualEdit, Eq. 4, and a learned one).

A threshold comes from training data (`editors.gating.training`), never from the inputs that a gate
is scored on. Gated locality is the gate's doing, so the ungated row belongs beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attrib.analyses.gating import token_positions
from attrib.errors import AttribError
from attrib.model.batch import Batch
from editors.gating.classifier import EncodedInputs, GateNet
from editors.gating.features import GateReader, Inputs

Token = Literal["prompt_last", "sequence_last"]
STATE = "state"
PAIRS_AT_ONCE = 4096
UNGATED = "ungated"


@dataclass(frozen=True, eq=False)
class CosineGate:
    """Opens where the state of one token is like the edit's.

    With `token="prompt_last"` that token is the last one of the prompt, which is there when a model
    is used. With "sequence_last" it is the last position of the teacher-forced sequence, as in
    DualEdit's program: **the gate then leaks**, it reads the gold answer that it is to decide
    about. Its rates under teacher forcing say nothing about a model in use; where only a prompt is
    given (`generate`), it compares the edit's last target token with the last prompt token.

    Attributes:
        layer: Whose output is compared.
        threshold: Cosine from which on it opens; published: 0.6 (LLaVA) and 0.8 (BLIP-2).
        token: Which token's.
        record: How the threshold was found; JSON.
    """

    layer: int
    threshold: float
    token: Token = "prompt_last"
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.token

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Per example the token's state, "d_model"."""
        leaks = self.token == "sequence_last" and "target" in batch.spans
        at = token_positions(batch, "target_last" if leaks else "prompt_last")
        h = hidden[self.layer]
        return [{STATE: one} for one in h[at.to(h.device)].float()]

    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Cosines."""
        one, other = (
            normalize(torch.stack([s[STATE] for s in some]), dim=-1) for some in (queries, edits)
        )
        return one @ other.to(one).T

    def config(self) -> dict[str, Any]:
        """All there is to it, as JSON."""
        return {
            "gate": "cosine",
            "token": self.token,
            "layer": self.layer,
            "threshold": self.threshold,
            "record": dict(self.record),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}


@dataclass(frozen=True, eq=False)
class OpenGate(CosineGate):
    """No gate: every input is served, with the edit nearest to its last prompt token."""

    threshold: float = -torch.inf
    token: Token = "prompt_last"

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return UNGATED

    def config(self) -> dict[str, Any]:
        """All there is to it, as JSON."""
        return {"gate": "open", "layer": self.layer}


@dataclass(frozen=True, eq=False)
class LearnedGate:
    """Opens where a small network says that an input is one that the edit is about.

    It reads the prompt alone, so what it keeps of an edit does not depend on the edit's target.

    Attributes:
        reader: Picks the states it sees.
        net: Encodes them and scores pairs; in evaluation mode.
        threshold: Log-odds from which on it opens.
        record: How it was trained and calibrated, with the rates on held-out training edits; JSON.
    """

    reader: GateReader
    net: GateNet
    threshold: float
    record: Mapping[str, Any] = field(default_factory=dict)
    name: str = "learned"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it was trained on."""
        return self.reader.layers

    @torch.no_grad()
    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Per example what the network keeps of it; visual tokens without padding."""
        return self.encode(self.reader.states(hidden, batch))

    @torch.no_grad()
    def encode(self, states: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """What is kept of inputs whose states a reader picked."""
        inputs = Inputs.of(states)
        return self.net.to(inputs.text.device).encode(inputs).unpadded()

    @torch.no_grad()
    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Log-odds of the network, symmetric in query and edit."""
        one = EncodedInputs.of(queries)
        device = one.text_embedding.device
        other, net = EncodedInputs.of(edits).to(device), self.net.to(device)
        query, edit = torch.meshgrid(
            *(torch.arange(len(some), device=device) for some in (queries, edits)), indexing="ij"
        )
        pairs = zip(
            query.flatten().split(PAIRS_AT_ONCE), edit.flatten().split(PAIRS_AT_ONCE), strict=True
        )
        found = [net.compare(one[i], other[j]) for i, j in pairs]
        return torch.cat(found).view(len(queries), len(edits))

    def config(self) -> dict[str, Any]:
        """All there is to it but the tensors, as JSON."""
        return {
            "gate": "learned",
            "layers": list(self.layers),
            "d_model": self.reader.d_model,
            "sizes": self.net.sizes,
            "threshold": self.threshold,
            "record": dict(self.record),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What was learned, by name, in new tensors on the CPU."""
        parts = {"reader": self.reader, "net": self.net}
        return {
            f"{part}.{name}": value.detach().cpu().clone().contiguous()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LearnedGate":
        """The gate that has this configuration and these tensors."""
        reader = GateReader(config["layers"], config["d_model"])
        net = GateNet.over(reader, **config["sizes"])
        for part, module in {"reader.": reader, "net.": net}.items():
            own = {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
            module.load_state_dict(own)
        return cls(reader, net.eval(), config["threshold"], config["record"])


def gate_from_config(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> CosineGate | LearnedGate:
    """The gate whose `config()` and `tensors()` these are.

    Raises:
        AttribError: There is no gate of that kind.
    """
    kind = config.get("gate")
    if kind == "cosine":
        return CosineGate(
            config["layer"], config["threshold"], config["token"], config.get("record", {})
        )
    if kind == "open":
        return OpenGate(config["layer"])
    if kind != "learned":
        raise AttribError(f"gate {kind!r}: expected one of cosine, open, learned")
    return LearnedGate.of(config, tensors)

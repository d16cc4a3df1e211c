"""Gates: which edit, if any, applies to an input, by a cosine (DualEdit Eq. 4) or a network.

Thresholds come from training data (`editors.gating.training`), never from the inputs that a gate is
evaluated on. Locality behind a gate measures the gate: report the ungated row beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from attrib.analyses.gating import token_positions
from attrib.errors import AttribError, SetupError, describe
from attrib.files import atomic_write, read_json, write_text
from attrib.model.batch import Batch
from editors.adapters.lookup import KeyIndex
from editors.gating.classifier import EncodedInputs, GateNet
from editors.gating.features import GateInputs, GateReader
from editors.gating.shortlist import ShortlistIndex

Token = Literal["prompt_last", "sequence_last"]
NO_GATE = "none"
COSINES = ("prompt_last", "sequence_last")
GATES = (NO_GATE, *COSINES, "learned")
UNGATED = "ungated"  # name in tables
CONFIG, TENSORS = "gate.json", "gate.safetensors"
STATE = "state"
PAIRS_PER_PASS = 4096


@dataclass(frozen=True, eq=False)
class CosineGate:
    """Opens where the state of one token is similar to the edit's.

    With `token="prompt_last"` it is the last prompt token, which exists when a model is used. With
    "sequence_last" it is the last position of the teacher-forced sequence, as in DualEdit's
    program: **the gate then leaks**, because it reads the gold answer. Its open rates under teacher
    forcing say nothing about a model in use; given a prompt alone (`generate`), it compares the
    edit's last target token with the last prompt token.

    Attributes:
        layer: The layer whose output is compared.
        threshold: Lowest cosine at which it opens; published: 0.6 (LLaVA) and 0.8 (BLIP-2). With
            -inf it is always open: the edit nearest to the last prompt token applies.
        token: The token that is compared.
        record: How the threshold was found; JSON.
    """

    layer: int
    threshold: float
    token: Token = "prompt_last"
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name in tables; "ungated" for a gate that is always open."""
        return UNGATED if self.threshold == -torch.inf else self.token

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose outputs it reads."""
        return (self.layer,)

    @property
    def reads_target(self) -> bool:
        """Whether it reads the answers of teacher-forced inputs."""
        return self.token == "sequence_last"

    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Return each example's state of the token, "d_model"."""
        leaks = self.reads_target and "target" in batch.spans
        at = token_positions(batch, "target_last" if leaks else "prompt_last")
        h = hidden[self.layer]
        return [{STATE: one} for one in h[at.to(h.device)].float()]

    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Return cosines."""
        one, other = self.keys(queries), self.keys(edits)
        return self.compare_keys(one, other.to(one))

    def keys(self, states: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "input d_model"]:
        """Return the states of unit length."""
        return normalize(torch.stack([one[STATE] for one in states]), dim=-1)

    def compare_keys(
        self, one: Float[Tensor, "query d_model"], other: Float[Tensor, "edit d_model"]
    ) -> Float[Tensor, "query edit"]:
        """Return the cosines of keys."""
        return one @ other.T

    def index(self, edits: Sequence[Mapping[str, Tensor]]) -> KeyIndex:
        """Return the index of edits: one matrix product per input, exact."""
        return KeyIndex(self, self.keys(edits))

    def config(self) -> dict[str, Any]:
        """Return the configuration as JSON."""
        if self.threshold == -torch.inf:
            return {"gate": "open", "layer": self.layer}
        return {
            "gate": "cosine",
            "token": self.token,
            "layer": self.layer,
            "threshold": self.threshold,
            "record": dict(self.record),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return no tensors: nothing is learned."""
        return {}


@dataclass(frozen=True, eq=False)
class LearnedGate:
    """Opens where a small network classifies an input as covered by the edit.

    It reads the prompt alone, so that an edit's embedding does not depend on its target.

    Attributes:
        reader: Computes the features of inputs.
        net: Embeds them and scores pairs; in evaluation mode.
        threshold: Lowest log-odds at which it opens.
        record: Training settings, calibration and rates on held-out training edits; JSON.
        shortlist: Number of edits that a look-up scores exactly at a time; it changes how long
            a look-up takes, never its decision (see `editors.gating.shortlist`).
    """

    reader: GateReader = field(repr=False)
    net: GateNet = field(repr=False)
    threshold: float
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    name: str = "learned"
    shortlist: int = 8

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose outputs it reads."""
        return self.reader.layers

    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Return each example's embeddings; visual tokens without padding."""
        return self.encode(self.reader.states(hidden, batch))

    @torch.no_grad()
    def encode(self, states: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Embed inputs, given the reader's features."""
        inputs = GateInputs.of(states)
        return self.net.to(inputs.text.device).encode(inputs).unpadded()

    @torch.no_grad()
    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Return the network's log-odds, symmetric in query and edit."""
        one = EncodedInputs.of(queries)
        device = one.text_embedding.device
        other, net = EncodedInputs.of(edits).to(device), self.net.to(device)
        pairs = torch.cartesian_prod(
            torch.arange(len(queries), device=device), torch.arange(len(edits), device=device)
        )
        found = [net.compare(one[p[:, 0]], other[p[:, 1]]) for p in pairs.split(PAIRS_PER_PASS)]
        return torch.cat(found).view(len(queries), len(edits))

    def index(self, edits: Sequence[Mapping[str, Tensor]]) -> ShortlistIndex:
        """Return the index of edits: two matrix products per input, then exact scores of a few."""
        return ShortlistIndex(self, self.net, edits, self.shortlist)

    def config(self) -> dict[str, Any]:
        """Return everything but the tensors as JSON."""
        return {
            "gate": "learned",
            "layers": list(self.layers),
            "d_model": self.reader.d_model,
            "sizes": self.net.sizes,
            "threshold": self.threshold,
            "record": dict(self.record),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the learned tensors by name, cloned, on the CPU."""
        return {
            f"{part}.{name}": value.detach().cpu().clone().contiguous()
            for part, module in (("reader", self.reader), ("net", self.net))
            for name, value in module.state_dict().items()
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LearnedGate":
        """Rebuild a gate from its `config()` and `tensors()`."""
        reader = GateReader(config["layers"], config["d_model"])
        net = GateNet.for_reader(reader, **config["sizes"])
        for part, module in {"reader.": reader, "net.": net}.items():
            own = {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
            module.load_state_dict(own)
        return cls(reader, net.eval(), config["threshold"], config["record"])


def check_gate(name: str) -> None:
    """Raise AttribError unless `name` is one of `GATES`."""
    if name not in GATES:
        raise AttribError(f"no gate {name!r}; there are {', '.join(GATES)}")


def gate_from_config(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> CosineGate | LearnedGate:
    """Rebuild a gate from its `config()` and `tensors()`.

    Raises:
        AttribError: The configuration is of no known kind of gate.
    """
    kind = config.get("gate")
    if kind == "cosine":
        record = config.get("record", {})
        return CosineGate(config["layer"], config["threshold"], config["token"], record)
    if kind == "open":
        return CosineGate(config["layer"], -torch.inf)
    if kind != "learned":
        raise AttribError(f"gate {kind!r}: expected one of cosine, open, learned")
    return LearnedGate.of(config, tensors)


def save_gate(path: str | Path, gate: CosineGate | LearnedGate) -> Path:
    """Write a gate into the folder `path`, its configuration last."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with atomic_write(path / TENSORS) as file:
        file.write(save(gate.tensors()))
    write_text(path / CONFIG, json.dumps(gate.config(), indent=1))
    return path


def load_gate(path: str | Path) -> CosineGate | LearnedGate:
    """Load the gate in the folder `path`; raise SetupError if it is none, or damaged."""
    path = Path(path)
    if not (path / CONFIG).exists():
        raise SetupError(f"{path} holds no gate: there is no {CONFIG} in it")
    try:
        return gate_from_config(read_json(path / CONFIG), load_file(path / TENSORS))
    except (OSError, LookupError, RuntimeError, SafetensorError) as error:
        raise SetupError(f"{path}: the gate is damaged: {describe(error)}") from error

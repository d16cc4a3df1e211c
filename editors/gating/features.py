"""The inputs that gates are trained, calibrated and evaluated on, and their features.

A learned gate reads standardised hidden states of the prompt, without the target. Under causal
attention the prompt's states do not depend on what follows, so that the features of an edit do not
depend on its target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrib.data.rows import typed_hard_locality
from attrib.data.samples import EditRequest, EditSample
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.adapters.edit_signal import pad_states
from editors.base import encode_requests

REQUEST = "request"
COVERED = (REQUEST, "text_generality", "visual_generality")
CHANGED = ("crop", "jpeg", "flip", "frame")  # the request's picture, see `augmentation`
APPLIES = (*COVERED, *CHANGED)  # inputs that an edit applies to
EASY = ("text_locality", "visual_locality")
MINED_QUESTION, MINED_IMAGE = "mined_other_question", "mined_nearest_image"
Features = Callable[[dict[int, Tensor], Batch], list[dict[str, Tensor]]]  # such as `Gate.states`
TEXT, VISUAL = "text", "visual"
WIDTHS = {TEXT: 256, VISUAL: 128}  # channels kept of each layer where the model has more
SMALLEST_SPREAD = 1e-3  # least standard deviation by which a channel is divided


def group_of(relation: str) -> str:
    """What kinds of near negatives a kind is judged with, such as "same picture"."""
    if relation.startswith("same_image") or relation == MINED_QUESTION:
        return "same picture, other question"
    if relation in ("same_question_other_image", MINED_IMAGE):
        return "same question, other picture"
    return relation


class RelatedInput(NamedTuple):
    """An input of a sample.

    Attributes:
        row: Index of the sample.
        relation: "request", the name of a sample's list, or the type of a hard locality input.
        request: The input.
    """

    row: int
    relation: str
    request: EditRequest


def related_inputs(samples: Sequence[EditSample]) -> list[RelatedInput]:
    """Return each sample's request and every input that its edit is evaluated on, in order."""
    return [RelatedInput(row, *one) for row, s in enumerate(samples) for one in _inputs(s)]


@torch.no_grad()
def collect_states(
    vlm: VLM,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    features: Features,
    *,
    targets: bool = False,
    batch_size: int = 32,
    what: str = "inputs of the gate",
) -> list[dict[str, Tensor]]:
    """Run inputs once in the unedited model; return the features of each, on the CPU.

    Args:
        vlm: The model.
        requests: The inputs.
        layers: Layers whose outputs are read.
        features: Computes each example's features from these outputs.
        targets: Whether inputs include their gold answers, as edits and teacher-forced inputs do;
            this changes the features of a leaking gate only.
        batch_size: Inputs per pass.
        what: Label of the progress bar.

    Raises:
        RowError: An image cannot be used.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for some in progress(_batches(requests, batch_size), what):
        batch = encode_requests(vlm, [requests[i] for i in some], targets=targets)
        hidden = states_up_to(vlm, batch, layers)
        for i, states in zip(some, features(hidden, batch), strict=True):
            found[i] = {name: value.cpu() for name, value in states.items()}
    return [found[i] for i in range(len(requests))]


def _inputs(sample: EditSample) -> Iterator[tuple[str, EditRequest]]:
    yield REQUEST, sample.request
    for relation in (*COVERED[1:], *EASY):
        for request in getattr(sample, relation):
            yield relation, request
    yield from typed_hard_locality(sample)


def _batches(requests: Sequence[EditRequest], size: int) -> list[list[int]]:
    """Batch inputs of similar length, those without an image apart: less padding."""

    def length(i: int) -> tuple[bool, int, int]:
        return requests[i].source is None, len(requests[i].prompt), i

    order = sorted(range(len(requests)), key=length)
    return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass(frozen=True, eq=False)
class GateInputs:
    """Features of prompts, padded on the right.

    Attributes:
        text: States of the text tokens, those of several layers concatenated.
        text_mask: Which are real; the last of them is the last prompt token.
        visual: States of the visual tokens.
        visual_mask: Which are real; none where an input has no image.
    """

    text: Float[Tensor, "input token text_channel"]
    text_mask: Bool[Tensor, "input token"]
    visual: Float[Tensor, "input patch visual_channel"]
    visual_mask: Bool[Tensor, "input patch"]

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]]) -> "GateInputs":
        """Batch what `GateReader.states` returned for some inputs."""
        text, text_mask = pad_states([one[TEXT].float() for one in states])
        visual, visual_mask = pad_states([one[VISUAL].float() for one in states])
        return cls(text, text_mask, visual, visual_mask)


class GateReader(nn.Module):
    """Selects and standardises the states of text and visual tokens, channel by channel.

    States of wide models are reduced by a random projection, which preserves inner products on
    average (Johnson and Lindenstrauss); it is drawn from the seed and saved.
    """

    def __init__(self, layers: Sequence[int], d_model: int, seed: int = 0):
        super().__init__()
        self.layers, self.d_model = tuple(layers), d_model
        generator = torch.Generator().manual_seed(seed)
        for kind, most in WIDTHS.items():
            self.register_buffer(f"{kind}_mean", torch.zeros(len(layers), d_model))
            self.register_buffer(f"{kind}_spread", torch.ones(len(layers), d_model))
            if d_model > most:
                drawn = torch.randn(d_model, most, generator=generator) / most**0.5
                self.register_buffer(f"{kind}_projection", drawn)

    def width(self, kind: str) -> int:
        """Channels of the features of text or visual tokens."""
        return len(self.layers) * min(WIDTHS[kind], self.d_model)

    @torch.no_grad()
    def fit(self, raw: Sequence[Mapping[str, Tensor]]) -> None:
        """Take means and standard deviations from `raw_states` of some inputs."""
        for kind in WIDTHS:
            states = torch.cat([one[kind].float() for one in raw])
            if len(states) < 2:
                continue  # edits of text alone have no visual tokens
            self.get_buffer(f"{kind}_mean").copy_(states.mean(0))
            self.get_buffer(f"{kind}_spread").copy_(states.std(0).clamp(min=SMALLEST_SPREAD))

    def raw_states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Return each example's states of text and visual tokens, "token layer d_model"."""
        h = torch.stack([hidden[i].detach().to(hidden[self.layers[0]]) for i in self.layers], dim=2)
        # An image alone is a prompt as well: its last visual token then stands for the text.
        text = (batch["text"] | batch["last"]).to(h.device)
        visual = batch["visual"].to(h.device)
        return [
            {TEXT: one[at].clone(), VISUAL: one[seen].clone()}
            for one, at, seen in zip(h, text, visual, strict=True)
        ]

    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Return each example's features, "token channel" in half precision."""
        raw = self.raw_states(hidden, batch)
        self.to(raw[0][TEXT].device)
        return [{kind: self._features(one[kind], kind) for kind in WIDTHS} for one in raw]

    def _features(
        self, states: Float[Tensor, "token layer d_model"], kind: str
    ) -> Float[Tensor, "token channel"]:
        x = states.float() - self.get_buffer(f"{kind}_mean")
        x = x / self.get_buffer(f"{kind}_spread")
        if hasattr(self, f"{kind}_projection"):
            x = x @ self.get_buffer(f"{kind}_projection")
        return x.flatten(1).half()

"""SERAC's edits: the scope gate, and the counterfactual model in place of the last layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import on_input, on_output
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import pad_states
from editors.adapters.lookup import KeyIndex
from editors.adapters.router import GatedEdit, Router, active_batch
from editors.adapters.sites import Gate, MemoryEntry
from editors.gating.calibration import calibrate
from editors.gating.features import COVERED
from editors.gating.threshold import gate_scores
from editors.methods.serac_networks import Counterfactual, Scope, pad_with_positions

PROMPT, TARGET = "prompt", "target"  # keys of a memory's signals: input embeddings of an edit
VECTOR = "vector"
Example = tuple[Tensor, Mapping[str, Tensor]]  # states "pos d_model", spans " pos"


@dataclass(frozen=True, eq=False)
class ScopeGate:
    """SERAC's scope classifier as a gate: opens if a prompt is in the scope of an edit.

    Attributes:
        net: The classifier.
        layer: The layer whose output it reads.
        threshold: Score from which on it opens.
        record: How the threshold was found (JSON).
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
        """The vector of each example's prompt; targets are not read."""
        h = hidden[self.layer]
        spans = {name: batch.spans[name].to(h.device) for name in ("text", "last", "visual")}
        rows = [(h[i], {name: span[i] for name, span in spans.items()}) for i in range(len(h))]
        return [{VECTOR: vector} for vector in prompt_vectors(self.net, rows)]

    @torch.no_grad()
    def scores(
        self, queries: Sequence[Mapping[str, Tensor]], edits: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Scores of the classifier, symmetric in query and edit."""
        one, other = self.keys(queries), self.keys(edits)
        return self.compare_keys(one, other.to(one))

    def keys(self, states: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "input axis"]:
        """The vectors of inputs or edits."""
        return torch.stack([one[VECTOR] for one in states])

    @torch.no_grad()
    def compare_keys(
        self, one: Float[Tensor, "query axis"], other: Float[Tensor, "edit axis"]
    ) -> Float[Tensor, "query edit"]:
        """Scores of vectors."""
        return self.net.scores(one, other)

    def index(self, edits: Sequence[Mapping[str, Tensor]]) -> KeyIndex:
        """The index of edits: one matrix product per input, exact."""
        return KeyIndex(self, self.keys(edits))

    def calibrated(self, vlm: VLM, samples: Sequence[EditSample]) -> "ScopeGate":
        """A copy with a threshold from held-out edits.

        Each kind of input has the same weight. Without unrelated inputs the threshold is the
        score of "no edit" that the classifier learned.
        """
        table = gate_scores(vlm, samples, self)
        by = {str(name): some["value"].to_numpy() for name, some in table.groupby("relation")}
        inside = {name: values for name, values in by.items() if name in COVERED}
        outside = {name: values for name, values in by.items() if name not in COVERED}
        if not outside:
            return replace(self, threshold=self.net.none.item(), record={"rule": "as learned"})
        found = calibrate(inside, outside)
        return replace(self, threshold=found.threshold, record=found.record())


def prompt_vectors(net: Scope, examples: Sequence[Example]) -> Float[Tensor, "batch axis"]:
    """The classifier's vectors of prompts, given their states at the layer that it reads."""
    words, real = pad_states([h[spans["text"] | spans["last"]] for h, spans in examples])
    images = [h[spans["visual"]].float() for h, spans in examples]
    has_image = torch.tensor([len(image) > 0 for image in images], device=words.device)
    means = [image.sum(0) / max(1, len(image)) for image in images]
    return net(words, real, torch.stack(means), has_image)


@dataclass(frozen=True, eq=False)
class SERACEdit(GatedEdit):
    """Encoded edits, and the counterfactual model that answers the inputs in their scope.

    Attributes:
        answer: The counterfactual model; any number of edits share it.
        memories: Input embeddings and prompt vector of each edit.
        gate: Picks the edit that applies to an input; None applies the only edit to every input.
    """

    needs: ClassVar[str] = (
        "the scope classifier, which picks one per input; apply one edit at a time"
    )

    answer: Counterfactual
    memories: Sequence[MemoryEntry]
    gate: Gate | None = None

    def __repr__(self) -> str:
        gate = "no gate" if self.gate is None else "the scope gate"
        return f"SERACEdit({len(self.memories)} edits, {self.num_bytes:,} bytes, {gate})"

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply the edits to passes of `vlm.logits` and `vlm.generate`."""
        inputs, last = InputEmbeddings(vlm), vlm.layers[vlm.num_layers - 1]
        with (
            on_input(vlm.layers[0], inputs.capture),
            self.routed(vlm) as router,
            on_output(last, self._replacement(router, inputs)),
        ):
            yield

    def _replacement(
        self, router: Router, inputs: "InputEmbeddings"
    ) -> Callable[[Tensor], Tensor | None]:
        """A hook that replaces the last layer's output for inputs in scope."""

        @torch.no_grad()
        def replace_states(h: Float[Tensor, "batch pos d_model"]) -> Tensor | None:
            chosen = router.edit_index(len(h)).cpu()
            rows = (chosen >= 0).nonzero()[:, 0]
            if not len(rows):
                return None
            signals = [self.memories[i].signals for i in chosen[rows].tolist()]
            edits = pad_with_positions(
                [torch.cat([s[PROMPT].states, s[TARGET].states]) for s in signals],
                [len(s[PROMPT].states) - 1 for s in signals],
            )
            rows = rows.to(h.device)
            new = self.answer.to(h.device)(*edits, *inputs.of(rows))
            return h.index_copy(0, rows, new[:, -h.shape[1] :].to(h.dtype))

        return replace_states


@dataclass(eq=False)
class InputEmbeddings:
    """The embeddings of the current prompts and of the tokens generated since."""

    vlm: VLM
    states: list[Tensor] = field(default_factory=list)

    def capture(self, h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Append the stream that enters layer 0."""
        del args, kwargs
        batch = active_batch(self.vlm, "an edit of serac")
        if len(h) != batch.size:
            raise AttribError(
                f"an edit of serac answers one continuation per prompt, not {len(h)} for "
                f"{batch.size} prompts: generate without beams"
            )
        if h.shape[1] == batch["last"].shape[1]:
            self.states.clear()
        self.states.append(h.detach())

    def of(
        self, rows: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
        """Embeddings of some examples, positions (see `Counterfactual`), and which are real."""
        batch = active_batch(self.vlm, "an edit of serac")
        states = torch.cat(self.states, 1)[rows]
        last = batch["last"].int().argmax(1).to(rows.device)[rows]
        positions = torch.arange(states.shape[1], device=rows.device) - last[:, None]
        real = batch.inputs["attention_mask"].bool().to(rows.device)[rows]
        later = real.new_ones(len(rows), states.shape[1] - real.shape[1])
        return states, positions, torch.cat([real, later], 1)

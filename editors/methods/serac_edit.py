"""Edits that a small model answers for, in place of the model's last layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import on_input, on_output
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import pad_states
from editors.adapters.router import Router
from editors.adapters.sites import Gate, MemoryEntry
from editors.methods.serac_networks import Counterfactual

PROMPT, TARGET = "prompt", "target"  # what a memory keeps: input embeddings of an edit


@dataclass(frozen=True, eq=False)
class SERACEdit:
    """Edits, and the model that answers the questions that they are about.

    Attributes:
        answer: That model; it serves any number of edits.
        memories: Of each edit its input embeddings and its prompt's vector.
        gate: Tells which edit a question is about; None takes every question for the one there is.
    """

    answer: Counterfactual
    memories: Sequence[MemoryEntry]
    gate: Gate | None = None

    def __post_init__(self):
        if self.gate is None and len(self.memories) != 1:
            raise AttribError(
                f"{len(self.memories)} edits together need the scope classifier, which tells which "
                "one a question is about; apply one edit at a time"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes kept of the edits."""
        return sum(memory.num_bytes for memory in self.memories)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The edits hold for passes by `vlm.logits` and `vlm.generate`."""
        router, question = Router(vlm, self.memories, self.gate), Question(vlm)
        with ExitStack() as stack:
            stack.enter_context(on_input(vlm.layers[0], question.enter))
            for layer in () if self.gate is None else self.gate.layers:
                stack.enter_context(on_output(vlm.layers[layer], router.capture_hook(layer)))
            answer = self._answering(router, question)
            stack.enter_context(on_output(vlm.layers[vlm.num_layers - 1], answer))
            yield

    def _answering(self, router: Router, question: "Question") -> Callable[[Tensor], Tensor | None]:
        """What puts the small model's states in the place of the last layer's, where it answers."""

        @torch.no_grad()
        def put(h: Float[Tensor, "batch pos d_model"]) -> Tensor | None:
            chosen = torch.zeros(len(h), dtype=torch.long) if self.gate is None else router.chosen
            assert chosen is not None, "the classifier reads a layer that was not run"
            chosen = chosen.cpu()
            served = (chosen >= 0).nonzero()[:, 0]
            if not len(served):
                return None
            edits = [self.memories[i] for i in chosen[served].tolist()]
            self.answer.to(h.device)
            new = self.answer(*placed(edits), *question.of(served.to(h.device)))
            return h.index_copy(0, served.to(h.device), new[:, -h.shape[1] :].to(h.dtype))

        return put


@dataclass(eq=False)
class Question:
    """What has entered the model: the embeddings of the prompt and of what was generated since."""

    vlm: VLM
    states: list[Tensor] = field(default_factory=list)

    def enter(self, h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the stream that enters layer 0."""
        del args, kwargs
        batch = self._batch()
        if len(h) != batch.size:
            raise AttribError(
                f"an edit of serac answers one continuation per prompt; {len(h)} were asked for "
                f"{batch.size}: generate without beams"
            )
        if h.shape[1] == batch["last"].shape[1]:
            self.states.clear()
        self.states.append(h.detach())

    def of(
        self, rows: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
        """Of some examples the embeddings, their places (`placed`), and which are real."""
        batch, states = self._batch(), torch.cat(self.states, 1)[rows]
        last = batch["last"].int().argmax(1).to(rows.device)[rows]
        places = torch.arange(states.shape[1], device=rows.device) - last[:, None]
        real = batch.inputs["attention_mask"].bool().to(rows.device)[rows]
        later = real.new_ones(len(rows), states.shape[1] - real.shape[1])
        return states, places, torch.cat([real, later], 1)

    def _batch(self) -> Batch:
        batch = self.vlm.active_batch
        if batch is None:
            raise AttribError(
                "an edit holds for passes by vlm.logits(batch) and vlm.generate(batch): only they "
                "tell where images and prompts stand"
            )
        return batch


def placed(
    memories: Sequence[MemoryEntry],
) -> tuple[Float[Tensor, "edit pos d_model"], Int[Tensor, "edit pos"], Bool[Tensor, "edit pos"]]:
    """The embeddings of edits, their places from the last prompt token, and which are real."""
    kept = [[memory.signals[kind].states for kind in (PROMPT, TARGET)] for memory in memories]
    states, real = pad_states([torch.cat(parts) for parts in kept])
    last = torch.tensor([len(prompt) - 1 for prompt, _ in kept], device=states.device)
    return states, torch.arange(states.shape[1], device=states.device) - last[:, None], real

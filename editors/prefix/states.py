"""Inputs run up to a layer once, so that training goes on from there: the frozen prefix.

An adapter changes nothing in front of it. So every input of the training data passes the layers up
to the first site once; a training step pads the kept states of its inputs and runs the later layers
alone, as plain function calls, with the adapters in between.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.data.samples import EditRequest
from attrib.forward.hooks import capture, read
from attrib.forward.layer_call import Call
from attrib.forward.replay import Captured, first_tensor
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.adapters.edit_signal import EMBED
from editors.base import encode_requests
from editors.prefix.calls import one_example, stacked, variants

SPANS = ("visual", "text", "last")
Intervention = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """One teacher-forced input of the unedited model, without padding.

    Attributes:
        request: The input.
        hidden: By layer its output, `EMBED` for the stream entering layer 0: "pos d_model".
        spans: Positions by kind.
        labels: The next token's id where it belongs to the target, -100 elsewhere.
        final: The last layer's output at the positions with a label.
        calls: The different ways in which the layers were called.
        call_of: Which of them a layer was called in.
        between: What is added to the stream in front of a layer, where something is.
    """

    request: EditRequest
    hidden: dict[int, Float[Tensor, "pos d_model"]]
    spans: dict[str, Bool[Tensor, " pos"]]
    labels: Int[Tensor, " pos"]
    final: Float[Tensor, "asked d_model"]
    calls: tuple[Call, ...]
    call_of: tuple[int, ...]
    between: dict[int, Float[Tensor, "pos d_model"]]

    @property
    def num_bytes(self) -> int:
        """Bytes of the states."""
        kept = [*self.hidden.values(), *self.between.values(), self.final]
        return sum(t.numel() * t.element_size() for t in kept)

    @property
    def last(self) -> int:
        """Where the last prompt token stands."""
        return int(self.spans["last"].int().argmax())


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """Queries side by side, padded on the right, to be run on after a layer.

    Attributes:
        layer: Whose output `hidden` is.
        hidden: Their states there.
        spans: Positions by kind.
        labels: As in a query; -100 on padding.
        calls: How each later layer is called.
        between: What is added to the stream in front of a layer.
    """

    layer: int
    hidden: Float[Tensor, "batch pos d_model"]
    spans: dict[str, Bool[Tensor, "batch pos"]]
    labels: Int[Tensor, "batch pos"]
    calls: dict[int, Call]
    between: dict[int, Float[Tensor, "batch pos d_model"]]

    def run(
        self, vlm: VLM, interventions: Mapping[int, Sequence[Intervention]]
    ) -> Float[Tensor, "asked d_model"]:
        """The last layer's output where a label is asked for, row by row.

        Args:
            vlm: The model.
            interventions: Applied to each layer's output, in order.
        """
        h = self.hidden
        for move in interventions.get(self.layer, ()):
            h = move(h)
        for i in range(self.layer + 1, vlm.num_layers):
            args, kwargs = self.calls[i]
            h = h + self.between[i] if i in self.between else h
            h = first_tensor(vlm.layers[i](h, *args, **kwargs))
            for move in interventions.get(i, ()):
                h = move(h)
        return h[self.labels != IGNORE_INDEX]


@torch.no_grad()
def prefix_states(
    vlm: VLM,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    batch_size: int = 32,
    what: str | None = "inputs",
) -> list[PrefixStates]:
    """Run inputs with their targets once, keeping their states at `layers`.

    Raises:
        SetupError: The model hands its layers something that cannot be padded.
        RowError: An image cannot be used.
    """
    starts = range(0, len(requests), batch_size)
    found: list[PrefixStates] = []
    for start in starts if what is None else progress(starts, what):
        some = requests[start : start + batch_size]
        batch = encode_requests(vlm, some, padding_side="right")
        with capture(vlm) as captured, read(vlm) as hidden:
            vlm.logits(batch)
        hidden[EMBED] = captured.embed
        found += _split(vlm, some, batch, captured, hidden, layers)
    return found


def collate(queries: Sequence[PrefixStates], layer: int) -> PrefixBatch:
    """Queries side by side, to be run on after `layer`."""
    lengths = [len(q.labels) for q in queries]
    width, like = max(lengths), queries[0].final
    calls = [
        stacked([q.calls[i] for q in queries], lengths, width, like)
        for i in range(len(queries[0].calls))
    ]
    layers = range(layer + 1, len(queries[0].call_of))
    return PrefixBatch(
        layer,
        _padded([q.hidden[layer] for q in queries]),
        {name: _padded([q.spans[name] for q in queries]) for name in SPANS},
        _padded([q.labels for q in queries], IGNORE_INDEX),
        {i: calls[queries[0].call_of[i]] for i in layers},
        {i: _padded([q.between[i] for q in queries]) for i in queries[0].between if i > layer},
    )


def _split(
    vlm: VLM,
    requests: Sequence[EditRequest],
    batch: Batch,
    captured: Captured,
    hidden: dict[int, Tensor],
    layers: Sequence[int],
) -> list[PrefixStates]:
    calls, call_of = variants(vlm, captured)
    assert batch.labels is not None
    between = {i: after - before for i, (before, after) in captured.inputs.items() if i > 0}
    queries = []
    for row, real in enumerate(batch.inputs["attention_mask"].bool()):
        num, labels = int(real.sum()), batch.labels[row]
        asked = labels != IGNORE_INDEX

        def kept(h: Tensor, row: int = row, num: int = num) -> Tensor:
            return h[row, :num].clone()  # a view would keep the whole batch in memory

        queries.append(
            PrefixStates(
                requests[row],
                {layer: kept(hidden[layer]) for layer in layers},
                {name: kept(batch.spans[name]) for name in SPANS},
                labels[:num].clone(),
                hidden[vlm.num_layers - 1][row, asked].clone(),
                tuple(one_example(call, row, num, batch, hidden[EMBED]) for call in calls),
                call_of,
                {i: kept(h) for i, h in between.items()},
            )
        )
    return queries


def _padded(tensors: Sequence[Tensor], value: int = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)

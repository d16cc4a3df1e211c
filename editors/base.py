"""Interfaces of edits and editors, edits of weights, several edits at once, encoded requests."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, RowError
from attrib.model.batch import Batch
from attrib.model.devices import loaded_weights
from attrib.model.vlm import VLM

__all__ = [
    "Edit", "Editor", "Mode", "SequentialEdit", "WeightEdit", "edit_all", "encodable",
    "encode_requests", "is_causal", "require_encodable", "require_in_sequence",
]  # fmt: skip

logger = logging.getLogger("attrib")
Mode = Literal["sequential", "batch"]


@runtime_checkable
class Edit(Protocol):
    """One or several edited facts, active while the context of `applied` is open."""

    @property
    def num_bytes(self) -> int:
        """Bytes stored for the edit."""
        ...

    def applied(self, vlm: VLM) -> AbstractContextManager[None]:
        """Apply the edit inside the context; restore the model bit for bit on exit or error."""
        ...


def is_causal(edit: Edit) -> bool:
    """Whether what an edit does at a position depends on the tokens up to there alone.

    A prompt is then read in the same way whatever follows it. An edit says so by its `causal`.
    """
    return bool(getattr(edit, "causal", False))


@runtime_checkable
class Editor(Protocol):
    """Makes edits of one model, with or without training."""

    name: ClassVar[str]
    needs_layers: ClassVar[bool]  # whether `train` needs the layers to edit
    is_trained: ClassVar[bool]  # whether it has trained parameters, so that seeds differ

    @classmethod
    def train(
        cls, vlm: VLM, samples: Sequence[EditSample], *, out: str | Path, **options: Any
    ) -> "Editor":
        """Train on `samples`; resume from the checkpoints in the folder `out`."""
        ...

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "Editor":
        """Load the editor from the folder `path`; refuse one of another model."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the editor into the folder `path` as safetensors and JSON."""
        ...

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """Return the edit that installs a request."""
        ...

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """Combine several of its edits into one."""
        ...


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """Edited values of some parameters.

    Attributes:
        weights: The edited values, by parameter name in `vlm.model`.
        causal: See `is_causal`.
    """

    causal: ClassVar[bool] = True

    weights: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of the edited values."""
        return sum(t.nbytes for t in self.weights.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Replace the parameters' data inside the context; the original tensors come back."""
        known = {name for name, _ in vlm.model.named_parameters(remove_duplicate=False)}
        if unknown := sorted(set(self.weights) - known):
            raise AttribError(
                f"{vlm.name} has no parameter {unknown[0]}: the edit is of another model"
            )
        with loaded_weights(vlm.model, self.weights) as parameters:
            before = {name: parameters[name].data for name in self.weights}
            try:
                for name, value in self.weights.items():
                    parameters[name].data = value.to(before[name])
                yield
            finally:
                for name, value in before.items():
                    parameters[name].data = value

    def __repr__(self) -> str:
        return f"WeightEdit({len(self.weights)} parameters, {self.num_bytes:,} bytes)"


@dataclass(frozen=True, eq=False)
class SequentialEdit:
    """Edits that were made one after the other, each on the edited model, applied in that order."""

    edits: Sequence[Edit]

    @property
    def causal(self) -> bool:
        """See `is_causal`."""
        return all(map(is_causal, self.edits))

    @property
    def num_bytes(self) -> int:
        """Bytes stored for all of them."""
        return sum(edit.num_bytes for edit in self.edits)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply all of them."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied(vlm))
            yield


def edit_all(
    vlm: VLM, editor: Any, samples: Sequence[EditSample], mode: Mode | None = None
) -> Edit:
    """Return the edits of several samples as one, in their order.

    Args:
        vlm: The model.
        editor: The editor.
        samples: The edits.
        mode: "sequential": each edit is made on the model as edited so far. "batch": each is made
            on the original model, and all are held at once. By default that of the editor:
            sequential where edits set the same weights.

    Raises:
        AttribError: The editor cannot do that.
    """
    own: Mode = "sequential" if getattr(editor, "sequential", False) else "batch"
    if (mode or own) == "sequential":
        require_in_sequence(editor)
        edits: list[Edit] = []
        with ExitStack() as stack:
            for sample in samples:
                edits.append(editor.edit(vlm, sample.request))
                stack.enter_context(edits[-1].applied(vlm))
        return getattr(editor, "in_sequence", SequentialEdit)(edits)
    merge = getattr(editor, "merge", None)
    if merge is None:
        raise AttribError(f"{editor.name} keeps one edit at a time: it has no `merge`")
    if own == "sequential":
        raise AttribError(
            f"{editor.name} sets the same weights in each edit: make them in sequence, --sequential"
        )
    return merge([editor.edit(vlm, sample.request) for sample in samples])


def require_in_sequence(editor: Any) -> None:
    """Raise AttribError for an editor whose edits are all made on the original model."""
    if getattr(editor, "from_memories", getattr(editor, "gate", None)) is not None:
        raise AttribError(
            f"{editor.name} keeps its edits apart: none is made on an edited model; hold them "
            "at once, --at-once, or, of an editor of weights, leave the gate out, --gate none"
        )


def encode_requests(
    vlm: VLM,
    requests: Sequence[EditRequest],
    *,
    targets: bool = True,
    padding_side: Literal["left", "right"] = "left",
) -> Batch:
    """Encode the images, prompts and, with `targets`, the targets of requests as one batch."""
    images, prompts = [one.image for one in requests], [one.prompt for one in requests]
    answers = [one.target for one in requests] if targets else None
    return vlm.encode(images, prompts, answers, padding_side=padding_side)


def encodable(vlm: VLM, samples: Sequence[EditSample]) -> list[EditSample]:
    """The samples whose images and texts the model can read; the others are set aside by name.

    Every image is decoded once. A text is encoded alone, and with its images where none of their
    sizes was encoded with a text of that length before: processors and decoders refuse those.
    """
    usable, longest = [], {}
    for sample in samples:
        try:
            require_encodable(vlm, sample, longest)
            usable.append(sample)
        except AttribError as error:
            logger.warning("%s is set aside: %s", sample.id, error)
    return usable


def require_encodable(vlm: VLM, sample: EditSample, longest: dict[Any, int]) -> None:
    """Raise RowError with the part of a sample that the model cannot read, if there is one.

    Args:
        vlm: The model.
        sample: The edit and everything it is trained or judged on.
        longest: By sizes of images, the tokens of the longest text that was encoded with them.
    """
    roles = [(role, value) for role, value in vars(sample).items() if isinstance(value, list)]
    opened: dict[int, list[Any]] = {}
    for role, request in [("request", sample.request), *((n, r) for n, all in roles for r in all)]:
        try:
            if id(request.source) not in opened:
                opened[id(request.source)] = request.images
            _try_encoding(vlm, request, opened[id(request.source)], longest)
        except RowError:
            raise
        except AttribError as error:
            raise RowError(str(error).replace(" 0 ", " ", 1), field=role) from error


def _try_encoding(
    vlm: VLM, request: EditRequest, images: list[Any], longest: dict[Any, int]
) -> None:
    length, sizes = 0, tuple(image.size for image in images)
    if request.prompt.strip(" "):
        alone = vlm.encode([None], [request.prompt], [request.target])
        length = alone.inputs["input_ids"].shape[1]
    if (images or not length) and length > longest.get(sizes, -1):
        vlm.encode([images or None], [request.prompt], [request.target])
        longest[sizes] = length

"""Examples whose pictures a model would read differently in another batch.

Most models read each picture of a batch by itself. In some, what enters the decoder depends on the
other pictures: the processor pads them to the largest one and the tower sees the margin (Emu3), or
they are numbered over the whole batch and the number is a position (HunYuan-VL). Two pictures, read
together and alone, show whether a model is of this kind.

Then the arguments of the decoder are those of a pass over each example alone, which ends there, and
take the place of those of the batch. So logits, generation, analyses and edits need no other code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from attrib.errors import AttribError, describe, is_out_of_memory
from attrib.model.batch import Batch, is_of_row
from attrib.model.devices import wide
from attrib.model.pictures import Pictures
from attrib.model.precision import WHOLE_PASS
from attrib.model.probe import FAILURES
from attrib.model.wrapped import StopForward, on_call
from attrib.vocabulary import Template

logger = getLogger("attrib")
# "alone": what the decoder is given is made for each example alone; "one example per batch": the
# layers themselves mix examples.
Reading = Literal["together", "alone", "one example per batch"]
READING = "reading of pictures"
SIZES = (96, 64), (60, 90)  # of different shape: processors that pad to the largest pad both
PROMPTS = "a", "b c"


def probe_pictures() -> list[Image.Image]:
    """Two pictures of different shape, without repeated patches."""
    gradient = Image.linear_gradient("L")
    bands = gradient, gradient.rotate(90), gradient.rotate(45)
    return [Image.merge("RGB", bands).resize(size) for size in SIZES]


def reading_of(vlm: Any) -> Reading:
    """How a model reads the pictures of a batch; found by two pictures, once."""
    if vlm.processor is None:
        return "together"
    if READING not in vlm.verified:
        vlm.verified[READING] = "alone"  # so that `encode` keeps the inputs of each picture alone
        try:
            vlm.verified[READING] = _probe(vlm, vlm.encode(probe_pictures(), PROMPTS))
        except FAILURES as error:
            del vlm.verified[READING]
            if is_out_of_memory(error):
                raise
            vlm.verified[READING] = "together"
            logger.warning(
                "%s: two pictures could not be tried alone and together (%s); if pictures of a "
                "batch change each other, only --batch-size 1 is right: run attrib.check",
                vlm.name, describe(error),
            )  # fmt: skip
    return vlm.verified[READING]


def mixes_pictures(vlm: Any) -> bool:
    """Whether the pictures of a batch change each other in a model.

    Raises:
        AttribError: They do, and not only by what the decoder is given.
    """
    if (reading := reading_of(vlm)) == "one example per batch":
        raise AttribError(
            f"the layers of {vlm.name} read a picture differently beside those of other examples: "
            "use one example per batch (--batch-size 1)"
        )
    return reading == "alone"


@torch.no_grad()
def _probe(vlm: Any, batch: Batch) -> Reading:
    """Compare what enters the first layer for two pictures with what enters it for each alone."""
    first = vlm.layers[0]
    together = call_of(first, vlm.model, batch.inputs)
    alone = _merged(together, _calls_alone(first, vlm.model, batch), "")
    if _all_close(together, alone):
        return "together"
    with own_inputs(vlm, batch):
        replaced = call_of(first, vlm.model, batch.inputs)
    return "alone" if _all_close(replaced, alone) else "one example per batch"


def with_inputs_alone(vlm: Any, batch: Batch, pictures: Pictures, template: Template) -> Batch:
    """Return an encoded batch, with the inputs of each example alone if its pictures need them."""
    if sum(map(bool, pictures)) < 2 or not mixes_pictures(vlm):
        return batch
    each = zip(pictures, batch.prompts, strict=True)
    rows = [vlm.encode([own or None], [prompt], template=template).inputs for own, prompt in each]
    alone = ({k: v for k, v in row.items() if not is_of_row(k)} for row in rows)
    return replace(batch, alone=tuple(alone))


def check_inputs_alone(vlm: Any, batch: Batch) -> Batch:
    """Return a batch that was made elsewhere, unless the inputs of its pictures alone are needed.

    Raises:
        AttribError: They do, and the inputs of each example alone are unknown.
    """
    several = not batch.alone and int(batch["visual"].any(1).sum()) > 1
    if several and mixes_pictures(vlm):
        raise AttribError(
            f"{vlm.name} reads a picture differently beside those of other examples, and their "
            "inputs alone are unknown here: use encode, or one example per batch"
        )
    return batch


@contextmanager
def own_inputs(vlm: Any, batch: Batch, told: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """In the first pass inside the context, the decoder reads each example as if it were alone.

    Args:
        vlm: The model.
        batch: The examples of the pass; without inputs of each alone, nothing is done.
        told: Further rows among the inputs of the pass.

    Raises:
        AttribError: An argument of the decoder cannot be divided among the examples.
    """
    if not batch.alone:
        yield
        return
    # Before the pass: a model may keep what it finds for its later steps.
    decoder = vlm.components.decoder
    calls = _calls_alone(decoder, vlm.model, batch, told)

    def exchange(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = calls.copy()
        if not rows:
            return None  # a later step of generation
        calls.clear()
        times = len(_states(args, kwargs)) // len(rows)  # several continuations of a prompt
        return _merged((args, kwargs), [call for call in rows for _ in range(times)], "")

    with on_call(decoder, exchange):
        yield


def call_of(module: nn.Module, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The arguments with which a pass calls a module; the pass ends there."""

    def stop(*call: Any) -> None:
        raise StopForward(call)

    with on_call(module, stop):
        try:
            model(**inputs, use_cache=False)
        except StopForward as end:
            return end.value
    raise AttribError(f"{type(model).__name__} does not call its decoder on a prompt")


def _calls_alone(
    module: nn.Module, model: nn.Module, batch: Batch, told: Mapping[str, Tensor] | None = None
) -> list[Any]:
    rows = {name: value for name, value in batch.inputs.items() if is_of_row(name)}
    rows |= told or {}
    return [
        call_of(module, model, {k: v[i : i + 1] for k, v in rows.items()} | own)
        for i, own in enumerate(batch.alone)
    ]


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What enters the first layer, among the arguments of the decoder."""
    given = (*args, *kwargs.values())
    return next(x for x in given if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3)


def _merged(together: Any, rows: Sequence[Any], name: str) -> Any:
    """The arguments of a batch, with every tensor replaced by those of its examples alone.

    Where an example alone has none (no mask, no picture), its share of the batch's tensor stays.
    """
    if isinstance(together, Tensor):
        return _joined(together, rows, name)
    if type(together) is dict:
        of = [row if isinstance(row, dict) else {} for row in rows]
        return {k: _merged(v, [row.get(k) for row in of], str(k)) for k, v in together.items()}
    if type(together) in (list, tuple):
        like = [row if len(row or ()) == len(together) else [None] * len(together) for row in rows]
        return type(together)(
            _merged(value, some, name)
            for value, some in zip(together, zip(*like, strict=True), strict=True)
        )
    return together


def _joined(together: Tensor, rows: Sequence[Any], name: str) -> Tensor:
    given = [row for row in rows if isinstance(row, Tensor)]
    if not given:
        return together
    if all(row.shape == together.shape for row in rows if isinstance(row, Tensor)):
        return together  # it has no axis of examples
    for axis, size in enumerate(together.shape):
        shapes = {(*row.shape[:axis], *row.shape[axis + 1 :]) for row in given}
        if shapes != {(*together.shape[:axis], *together.shape[axis + 1 :])}:
            continue
        if size == len(rows) and all(row.shape[axis] == 1 for row in given):
            own = together.split(1, axis)
            pairs = zip(rows, own, strict=True)
            return torch.cat([r if isinstance(r, Tensor) else o for r, o in pairs], axis)
        if size == sum(row.shape[axis] for row in given):  # such as features of pictures
            return torch.cat(given, axis)
    raise AttribError(
        f"its decoder takes {name} of shape {tuple(together.shape)} for {len(rows)} examples and "
        f"{tuple(given[0].shape)} for one: encode one example at a time (--batch-size 1)"
    )


def _all_close(one: Any, other: Any) -> bool:
    """Whether all tensors of two calls are equal up to rounding."""
    if isinstance(one, dict):
        return all(_all_close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return all(_all_close(*pair) for pair in zip(one, other, strict=True))
    return not isinstance(one, Tensor) or _close(one, other)


def _close(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    error = (wide(one) - wide(other)).abs().max()
    return bool(error <= WHOLE_PASS[one.dtype] * wide(other).abs().max())

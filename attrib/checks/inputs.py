"""Examples to check a model on, its plain results, and comparisons up to rounding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.precision import ONE_STEP, QUANTISED_PASS, WHOLE_PASS
from attrib.model.vlm import VLM
from attrib.model.wrapped import is_packed, linears

Pairs = Iterable[tuple[Tensor, Tensor]]


class CheckFailed(Exception):
    """A check failed; the message says what was measured."""


def _gradient(width: int, height: int) -> Image.Image:
    """Return an image without repeated patches."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    channels = torch.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 13) % 256], -1)
    return Image.fromarray(channels.to(torch.uint8).numpy())


@dataclass(frozen=True, eq=False)
class CheckInputs:
    """A model and its examples: two images of different shape, and one text without image."""

    vlm: VLM
    images: Sequence[Image.Image | None] = (_gradient(96, 64), None, _gradient(60, 90))
    prompts: Sequence[str] = ("What is in the picture?", "nq question: who?", "Two words:")

    @cached_property
    def batch(self) -> Batch:
        """All examples, padded on the left."""
        return self.vlm.encode(self.images, self.prompts, padding_side="left")

    @cached_property
    def real(self) -> Tensor:
        """True where `batch` is not padding."""
        return self.batch.inputs["attention_mask"].bool()

    @cached_property
    def plain(self) -> Tensor:
        """Logits of a forward pass without hooks, "batch pos d_vocab".

        Raises:
            CheckFailed: They are not finite, or say nothing.
        """
        logits = self.vlm.logits(self.batch)
        if not logits[self.real].isfinite().all():
            raise CheckFailed("the logits are not finite")
        if not (logits[self.real].amax(-1) > logits[self.real].amin(-1)).all():
            raise CheckFailed("all logits of a position are equal")
        return logits

    @cached_property
    def hidden(self) -> dict[int, Tensor]:
        """Every layer's output in a plain forward pass."""
        with read(self.vlm) as hidden:
            self.vlm.logits(self.batch)
        return hidden

    @cached_property
    def is_quantised(self) -> bool:
        """Whether a linear layer of the decoder has packed weights."""
        return any(is_packed(one) for _, _, one in linears(self.vlm.components.decoder))

    def compare(
        self, pairs: Pairs, what: str, limits: Mapping[torch.dtype, float] = ONE_STEP
    ) -> str:
        """Return the largest difference within pairs, as text.

        Raises:
            CheckFailed: One exceeds the limit of the decoder's dtype, relative to the largest
                value (`QUANTISED_PASS` for a whole pass of a quantised model);
                for logits also half their largest distance from their mean.
        """
        limit, worst = limits[self.vlm.dtype], 0.0
        if limits is WHOLE_PASS and self.is_quantised:
            limit = max(limit, QUANTISED_PASS)
        for a, b in ((a.float(), b.float()) for a, b in pairs):
            allowed = limit * float(b.abs().max())
            if what == "logits" and b.ndim > 1:
                allowed = min(allowed, float((b - b.mean(-1, keepdim=True)).abs().max()) / 2)
            error = float((a - b).abs().max())
            if not error <= allowed:
                raise CheckFailed(f"{what} differ by {error:.1e}, more than {allowed:.1e}")
            worst = max(worst, error)
        return f"{what} differ by {worst:.1e}"

"""A vision-language model seen as a stack of decoder layers.

    vlm = load("tiny-llava")
    batch = vlm.encode([image, None], ["What is this?", "nq question: who wrote Emma?"])
    logits = vlm.logits(batch)

Any decoder-only image-text-to-text model of transformers is seen through the same face, its parts
found by structure (`attrib.model.components`); `vlm.model` and `vlm.processor` stay what they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from attrib.errors import AttribError
from attrib.model.active_batch import running
from attrib.model.batch import Batch, Grid, Span
from attrib.model.checkpoint import read_checkpoint
from attrib.model.components import (
    FrozenNorm,
    Parts,
    find_parts,
    freeze_norm,
    needs_pixels,
    patch_size,
)
from attrib.model.encoding import encode_rows, next_tokens, pad_rows, spans_of, target_ids
from attrib.model.generation_inputs import bos_token_id, left_padded, new_texts, placed
from attrib.model.image_placeholder import ImageStyle, find_style, quiet
from attrib.model.patch_grid import grid_finder
from attrib.model.prompt_rewriting import rewritten

__all__ = ["VLM", "Batch", "Grid", "Span", "load"]


@dataclass(frozen=True, eq=False)
class VLM:
    """A Hugging Face vision-language model and its processor, with the parts named.

    Attributes:
        model: The Hugging Face model.
        processor: The Hugging Face processor; without one, only `batch` makes inputs.
        name: What to call the model in results.
    """

    model: PreTrainedModel
    processor: Any = None
    name: str = ""

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.model.name_or_path or type(self.model).__name__)
        _ = self.parts  # a model that cannot be handled is refused now

    @cached_property
    def parts(self) -> Parts:
        """Decoder, layers, norm, head and image token id, found by structure."""
        return find_parts(self.model)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        if self.processor is None:
            raise AttribError(f"{self.name} has no processor: give one, VLM(model, processor)")
        return self.processor.tokenizer

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.parts.layers

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parts.d_model

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.layers.parameters()).device

    def unembed(self, h: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """Logits of a hidden state: final norm, then the output embedding."""
        return self.parts.head(self.parts.norm(h))

    def freeze_norm(self, h: Float[Tensor, "batch d_model"]) -> FrozenNorm:
        """The final norm as a linear map with the statistics it has at `h`."""
        return freeze_norm(self.parts.norm, h)

    def logits(self, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position of a plain forward pass."""
        run = rewritten(self, batch)
        with running(self, run.batch):
            return run.back(self.model(**run.batch.inputs, use_cache=False).logits)

    def batch(self, inputs: dict[str, Any]) -> Batch:
        """A batch of inputs that were processed elsewhere: tells their positions apart.

        Args:
            inputs: Keyword arguments of the model's forward; `input_ids` among them.
        """
        inputs = {"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs
        return Batch(inputs, self._spans(inputs), (None,) * len(inputs["input_ids"]))

    def encode(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        template: Literal["raw", "chat"] = "raw",
        padding_side: Literal["left", "right"] = "left",
    ) -> Batch:
        """Prompts with their images as one batch.

        Args:
            images: One per prompt; None where a prompt has no image.
            prompts: What is asked. The image's marker is put in front by itself.
            targets: What follows each prompt, teacher-forced; a space is put between where there is
                none. The batch then has `labels` and a "target" span.
            template: "raw" for the prompt as it stands, "chat" for the model's chat template.
            padding_side: Where shorter rows are filled up. On the left, prompts end together and
                can be continued (`generate`), also under a `write`.

        Raises:
            AttribError: Lists of different lengths, an empty target, or an image token in a prompt.
        """
        given = (images, prompts, targets, template)
        rows, tensors, lengths = encode_rows(self.processor, self._style, *given)
        if all(image is None for image in images) and not needs_pixels(self.model):
            tensors = {}
        padded = pad_rows(rows, self.tokenizer.pad_token_id, padding_side)
        inputs = placed(padded | tensors, self.device, self.model.dtype)
        spans = self._spans(inputs, lengths)
        labels = None if lengths is None else next_tokens(inputs["input_ids"], spans["target"])
        grids = tuple(map(self._grid_of, images, spans["visual"].sum(1).tolist()))
        return Batch(inputs, spans, grids, labels)

    def answer_token(self, text: str) -> int:
        """The first token of `text` as it follows a prompt."""
        return target_ids(self.tokenizer, "a", text)[0]

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int = 16, **settings: Any) -> list[str]:
        """The text that continues each prompt, greedy unless told otherwise.

        Padding on the right is moved to the left, and one column added: a `write` that is open then
        sees that the positions are not those of its span, and says so, instead of missing them.

        Args:
            batch: Prompts without targets; padded on the left, if something is to be written.
            max_new_tokens: Longest continuation.
            settings: Passed on to the Hugging Face `generate`.

        Returns:
            The new text only, without special tokens and surrounding space.
        """
        if batch.labels is not None:
            raise AttribError("generate continues prompts: encode them without targets")
        inputs = left_padded(rewritten(self, batch).batch.inputs, self.tokenizer.pad_token_id)
        settings = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id} | settings
        model: Any = self.model  # its classes inherit `generate` from a mixin
        with quiet(), running(self, self.batch(inputs)):  # sampling settings do not matter
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        return new_texts(self.tokenizer, inputs["input_ids"], out)

    def verify(self) -> None:
        """Check on a small example that the model can be read and written as promised.

        Raises:
            SetupError: It cannot; the message names the promise and the numbers.
        """
        # Imports from above stay inside: a model is checked by the tools built on the wrapper.
        from attrib.checks.run import verify

        verify(self)

    def cache(self, batch: Batch, positions: str = "last", *, attention: bool = True) -> Any:
        """A pass as a `transformer_lens.ActivationCache`; see `attrib.bridges.cache`."""
        from attrib.bridges.cache import cache

        return cache(self, batch, positions, attention=attention)

    def to_bridge(self) -> Any:
        """A `TransformerBridge` that shares the weights; see `attrib.bridges.bridge`."""
        from attrib.bridges.bridge import to_bridge

        return to_bridge(self)

    @staticmethod
    def from_bridge(bridge: Any) -> "VLM":
        """The model of a `TransformerBridge`, unbridged; see `attrib.bridges.bridge`."""
        from attrib.bridges.bridge import from_bridge

        return from_bridge(bridge)

    def _spans(
        self, inputs: dict[str, Any], target_lengths: Sequence[int] | None = None
    ) -> dict[str, Bool[Tensor, "batch pos"]]:
        bos_id = bos_token_id(self.model, self.processor)
        real, image_id = inputs["attention_mask"].bool(), self.parts.image_token_id
        return spans_of(inputs["input_ids"], real, image_id, bos_id, target_lengths)

    @cached_property
    def _grid_of(self) -> Callable[[Image.Image | None, int], Grid | None]:
        return grid_finder(self.processor.image_processor, patch_size(self.model))

    @cached_property
    def _style(self) -> ImageStyle:
        if self.tokenizer.pad_token is None:  # to fill up rows; it is masked, so any token does
            self.tokenizer.pad_token = self.tokenizer.eos_token
        return find_style(self.processor, self.parts.image_token_id)


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    verify: bool = True,
) -> VLM:
    """A model by embedded name, folder or Hugging Face id, for evaluation, without gradients.

    Args:
        name: "tiny-llava", a folder written by `save_pretrained`, or an id on the Hugging Face hub.
        device: Where to put it; by default a GPU if there is one.
        dtype: "float32", "bfloat16", "float16"; by default float32 on a CPU, elsewhere the
            checkpoint's own.
        revision: Branch, tag or commit of a Hugging Face id.
        trust_remote_code: Run code that comes with the model; needs a pinned `revision`.
        verify: Check that the checkpoint is complete and the model works as promised here.

    Raises:
        SetupError: There is no such model, it is not a decoder-only image-text-to-text model, its
            weights are pickles, it needs remote code, or it does not pass the verification.
    """
    model, processor = read_checkpoint(
        name, device, dtype, revision, trust_remote_code, complete=verify
    )
    vlm = VLM(model, processor, name)
    if verify:
        vlm.verify()
    return vlm

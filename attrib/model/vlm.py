"""A Hugging Face vision-language model as a stack of decoder layers, found by structure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.model import encoding, precision
from attrib.model.answers import answer_ids, generated_ids
from attrib.model.batch import Batch, token_spans, visual_token_ids
from attrib.model.company import check_inputs_alone, own_inputs, with_inputs_alone
from attrib.model.components import Components, describe, find_components
from attrib.model.devices import execution_device, loaded
from attrib.model.image_placeholder import ImagePlaceholder, find_placeholder
from attrib.model.logits import gather_last, keep_all, logits_to_keep
from attrib.model.pictures import GivenImages, PictureFinder
from attrib.model.probe import Unembedding, examine
from attrib.model.processor_settings import completed, running
from attrib.model.prompt_rewriting import Rewriter, apply_rewriters, pushed
from attrib.model.routing import Route, ask
from attrib.model.row_checks import check_lengths, check_text
from attrib.model.wrapped import eager, unwrapped
from attrib.vocabulary import Padding, Template


@dataclass(frozen=True, eq=False, repr=False)
class VLM:
    """A Hugging Face vision-language model and its processor.

    Attributes:
        model: The Hugging Face model; of one in a wrapper (peft, `torch.compile`) that within.
        processor: Its processor, completed from the model's config; without one only `batch` works.
        name: Name of the model in results.
        template: How `encode` writes prompts: "raw", as they are, or "chat", in the chat template.
        verified: What passes verified: suffix replays by kind of layer calls, wirings by layer.
        unembedding: Final norm, output embedding and what happens to the logits.
    """

    model: Any
    processor: Any = None
    name: str = ""
    template: Template = "raw"
    _active: list[Batch] = field(default_factory=list, init=False)
    _rewriters: list[Rewriter] = field(default_factory=list, init=False)
    _routes: list[Route] = field(default_factory=list, init=False)
    verified: dict[Any, Any] = field(default_factory=dict, init=False)
    unembedding: Unembedding = field(init=False)
    _counts_padding: bool = field(init=False)  # as positions, unless told the positions

    def __post_init__(self):
        vars(self).update(model=unwrapped(self.model))
        name = self.name or self.model.name_or_path or type(self.model).__name__
        vars(self).update(name=name, processor=completed(self.processor, self.model))
        found = examine(self.model, self.components)  # or refuse it
        vars(self).update(zip(("unembedding", "_counts_padding"), found, strict=True))

    def __repr__(self) -> str:
        return describe(self)

    @cached_property
    def components(self) -> Components:
        """Decoder, layers, norm, head and image token id."""
        return find_components(self.model)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        if self.processor is not None:
            return self.processor.tokenizer
        raise AttribError(f"{self.name} has no processor: give one, VLM(model, processor)")

    @property
    def pad_id(self) -> int:
        """Token id for padding; any id works where the tokenizer has none, since it is masked."""
        return self._padding_processor.tokenizer.pad_token_id

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.components.layers

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.components.d_model

    @property
    def device(self) -> torch.device:
        """Device on which the first decoder layer runs, where inputs go."""
        return execution_device(self.layers[0])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder; other parts of the model may have another one."""
        return precision.main_dtype(self.layers[0].parameters())

    @property
    def active_batch(self) -> Batch | None:
        """The batch of the current `logits` or `generate` call, after prompt rewriting, or None."""
        return self._active[-1] if self._active else None

    def unembed(self, h: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """The model's logits for a last layer's output, on its device."""
        return self.unembedding(h)

    def unembed_float32(self, h: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """`unembed` in float32 or wider, whatever the model runs in."""
        return self.unembedding.float32(h)

    def logits(self, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position, from one forward pass."""
        if self._routes:
            return ask(self, VLM.logits, batch)
        run = apply_rewriters(self._rewriters, batch)
        return run.gather_back(self._run(run.batch).logits)

    def last_logits(self, batch: Batch) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last prompt token, without those of other positions where possible."""
        if self._routes:
            return ask(self, VLM.last_logits, batch)
        run = apply_rewriters(self._rewriters, batch).batch
        keep = logits_to_keep(self.model, self.components.decoder, run)
        return gather_last(self._run(run, **keep).logits, run)

    def _run(self, batch: Batch, **settings: int) -> Any:
        told = encoding.positions(batch.inputs["attention_mask"]) if self._counts_padding else {}
        with running(self._active, batch, self.processor), own_inputs(self, batch, told):
            return self.model(**told | batch.inputs, **{"use_cache": False} | settings)

    def batch(self, inputs: dict[str, Any], alone: tuple[dict[str, Any], ...] = ()) -> Batch:
        """Wrap arguments of the model's forward, with `input_ids`; `alone` as in `Batch`."""
        inputs = {"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs
        spans, pictures = token_spans(inputs, *self._span_ids), ((),) * len(inputs["input_ids"])
        return check_inputs_alone(self, Batch(inputs, spans, pictures, alone=alone))

    def encode(
        self,
        images: GivenImages,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        template: Template | None = None,
        padding_side: Padding = "left",
        answers: Sequence[str] | None = None,
    ) -> Batch:
        """Encode prompts with their images as one batch.

        Args:
            images: One per prompt (`attrib.data.pixels`), its path, None, or a list of several.
            prompts: The questions, without image markers: these are inserted automatically.
            targets: Text after each prompt, teacher-forced: adds `labels` and a "target" span.
            template: "raw" or "chat" in place of `self.template`.
            padding_side: "left" aligns the ends of prompts, as `generate` needs under a `write`.
            answers: Expected texts; blank tokens at their start are put at the prompts' ends.

        Raises:
            AttribError: A row cannot be used; the message says which and why.
        """
        pictures = self._picture_finder.accept(images)
        template = template or self.template
        given = (self._placeholder, pictures, prompts, targets, template, answers)
        rows, tensors, lengths = encoding.encode_rows(self._padding_processor, *given)
        check_lengths(rows, tensors, self.model.config)
        tensors = tensors if any(pictures) or self.components.needs_pixels else {}
        tensors |= encoding.pad_rows(rows, self.pad_id, padding_side)
        dtype = precision.pixel_dtype(self.model, self.components.decoder)
        inputs = encoding.to_device(tensors, self.device, dtype)
        spans = token_spans(inputs, *self._span_ids, lengths)
        found = self._picture_finder.find(pictures, spans["visual"])
        batch = Batch(inputs, spans, found, prompts=tuple(prompts))
        return with_inputs_alone(self, batch, pictures, template)

    def answer_token(self, text: str) -> int:
        """Id of the first token with content of `text` as the continuation of a prompt."""
        return answer_ids(self.tokenizer, "a", check_text(self._placeholder, text, "the answer"))[0]

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int = 16, **settings: Any) -> list[str]:
        """Continue each prompt, greedily by default; the new texts, without space around them.

        Right padding moves to the left by a column: an open `write` for the old positions fails.

        Args:
            batch: Prompts without targets; padded on the left for use under a `write`.
            max_new_tokens: Maximum number of new tokens.
            settings: More for Hugging Face's `generate`; a checkpoint's own are not used.
        """
        if self._routes:
            return ask(self, VLM.generate, batch, max_new_tokens, **settings)
        if batch.labels is not None:
            raise AttribError("generate continues prompts: encode them without targets")
        run = apply_rewriters(self._rewriters, batch).batch
        inputs = encoding.pad_left(run.inputs, self.pad_id)
        kept = keep_all(self.components.decoder) | settings
        limits = self.tokenizer, self.pad_id, max_new_tokens, kept
        padded = self.batch(inputs, run.alone)
        with eager(), loaded(self.model), pushed(self._active, padded), own_inputs(self, padded):
            out = generated_ids(self.model, inputs, *limits)
        return encoding.new_texts(self.tokenizer, inputs["input_ids"], out)

    def rewrite_prompts(self, rewriter: Rewriter) -> Any:
        """Run `rewriter(batch)` in place of each batch of `logits` and `generate`."""
        return pushed(self._rewriters, rewriter)

    def cache(self, batch: Batch, positions: str = "last", *, attention: bool = True) -> Any:
        """Run a batch into a `transformer_lens.ActivationCache`; see `attrib.bridges.cache`."""
        from attrib.bridges.cache import cache

        return cache(self, batch, positions, attention=attention)

    def to_bridge(self) -> Any:
        """Return a weight-sharing `TransformerBridge`; see `attrib.bridges.adapters`."""
        from attrib.bridges.adapters import to_bridge

        return to_bridge(self)

    @staticmethod
    def from_bridge(bridge: Any) -> "VLM":
        """Wrap the model of a `TransformerBridge`; see `attrib.bridges.adapters`."""
        from attrib.bridges.adapters import from_bridge

        return from_bridge(bridge)

    @cached_property
    def _span_ids(self) -> tuple[list[int], int | None]:
        source = self.tokenizer if self.processor else self.model.config.get_text_config()
        ids = visual_token_ids(self.components.image_token_id, self.model.config)
        return ids, source.bos_token_id

    @cached_property
    def _picture_finder(self) -> PictureFinder:
        return PictureFinder(self._padding_processor, self._placeholder, self.components.patch_size)

    @cached_property
    def _padding_processor(self) -> Any:
        return encoding.with_pad_token(self.processor, self.tokenizer)

    @cached_property
    def _placeholder(self) -> ImagePlaceholder:
        return find_placeholder(self._padding_processor, self.components.image_token_id)

"""TransformerLens bridges of a VLM, and an architecture adapter for models without one.

TransformerLens rewrites the bridged model in place: it replaces modules and makes attention eager.
Both conversions therefore work on a copy of the module tree that shares every weight.

TransformerLens supports the text models inside them (OPT, Llama, Qwen2, Gemma ...). Our adapter
takes the one for the text model, redirects it to the decoder that `attrib.model.components` finds
in the whole model, and adds hook points at the image tower, the Q-Former and the projection.

It is this package's entry point in `transformer_lens.architectures` for each of `ARCHITECTURES`, so
`build_bridge_from_module` finds it. `boot_transformers` tests whether an architecture is supported
before it reads entry points (TransformerLens 4.3): import `attrib.bridges` first, or call
`ArchitectureAdapterFactory.discover_entry_points()`.
"""

import copy
from functools import cache, wraps
from itertools import chain
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import VisionProjectionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import (
    build_bridge_config_from_hf,
    detect_tokenizer_bos_eos,
)
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.utilities.architectures import MULTIMODAL_ARCHITECTURES
from transformers import PreTrainedModel

from attrib.errors import AttribError, SetupError
from attrib.model.components import Components, find_components
from attrib.model.vlm import VLM

ARCHITECTURES = (
    "Blip2ForConditionalGeneration",
    "InstructBlipForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
# Text models without an adapter, and the model whose text adapter fits them.
TEXT_ADAPTERS = {"qwen2_vl_text": "Qwen2_5_VLForConditionalGeneration"}
PROJECTIONS = ("multi_modal_projector", "language_projection", "connector", "merger")
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def to_bridge(vlm: VLM) -> TransformerBridge:
    """Return the model as a bridge, with TransformerLens' own adapter if it has one, else ours.

    The bridge shares its weights with `vlm.model`, so in-place changes appear in both.
    `enable_compatibility_mode` creates new weights and does not touch the model. Forward hooks of
    the model, such as those of an open `write`, are copied to the bridge.

    Raises:
        SetupError: TransformerLens has no adapter for the text model.
    """
    model = shared_copy(vlm.model)
    name = type(model).__name__
    cfg = build_bridge_config_from_hf(model.config, name, vlm.name, vlm.dtype)
    tokenizer = None if vlm.processor is None else vlm.tokenizer
    if tokenizer is not None:
        # TransformerLens would also add tokens to it, and load it again by name.
        cfg.tokenizer_prepends_bos, cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(tokenizer)
    adapter = _adapter_class(name)(cfg)
    adapter.cfg.device = str(vlm.device)
    adapter.prepare_model(model)
    bridge = TransformerBridge(model, adapter, tokenizer)
    bridge.processor = vlm.processor
    return bridge


def from_bridge(bridge: TransformerBridge) -> VLM:
    """Return the model of a bridge without the bridge, sharing its weights but not its hooks.

    Raises:
        AttribError: The weights were processed (`enable_compatibility_mode`).
        SetupError: The model is no vision-language model that `VLM` can handle.
    """
    if bridge._weights_processed:
        raise AttribError(
            "this bridge's weights are processed and fit no other model; convert before "
            "enable_compatibility_mode(), or use enable_compatibility_mode(no_processing=True)"
        )
    model: Any = _unwrapped(shared_copy(bridge.original_model))
    if model._supports_sdpa:  # only bridges need eager attention
        model.set_attn_implementation("sdpa")
    return VLM(model, bridge.processor, bridge.cfg.model_name)


def shared_copy(model: AnyModule) -> AnyModule:
    """Copy the module tree; parameters and buffers are shared."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _adapter_class(architecture: str) -> type[ArchitectureAdapter]:
    kind = SUPPORTED_ARCHITECTURES.get(architecture, VisionLanguageAdapter)
    if not kind.required_libraries:
        return kind
    # Libraries for loading a checkpoint (torchvision) are not needed for a loaded model.
    return type(kind.__name__, (kind,), {"required_libraries": []})


def _unwrapped(module: nn.Module) -> nn.Module:
    """Remove the components that a bridge wrapped around `module` and its children."""
    while isinstance(module, GeneralizedComponent):
        inner = module.original_component
        assert inner is not None
        module = inner
    for name, child in module.named_children():
        setattr(module, name, _unwrapped(child))
    if isinstance(module, nn.Linear) and "bias" in module._buffers:
        del module._buffers["bias"]  # zeros, added by the bridge to a head without bias
        module.register_parameter("bias", None)
    return module


class VisionLanguageAdapter(ArchitectureAdapter):
    """Adapter for any decoder-only vision-language model whose text model is supported.

    The configuration alone does not identify the text model, so components are mapped in
    `prepare_model`. There the adapter also becomes an instance of the text model's adapter, and
    processes weights in the same way.
    """

    required_libraries: list[str] = []  # noqa: RUF012 the base class declares a list

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self._set_multimodal()

    def prepare_model(self, hf_model: Any) -> None:
        """Map the components of `hf_model`, and accept `input_ids` as its first argument.

        Raises:
            SetupError: It is an encoder-decoder, or TransformerLens lacks its text model.
        """
        text, found = _text_adapter(hf_model), find_components(hf_model)
        combined: Any = _combined(type(self), text)
        self.__class__ = combined
        text.__init__(self, self.cfg)
        self._set_multimodal()
        self._map_components(hf_model, found)
        super().prepare_model(hf_model)
        if found.needs_pixels:
            hf_model.forward = _forward_with_ids_first(hf_model)

    def _set_multimodal(self) -> None:
        self.cfg.is_multimodal = True
        self.cfg.attn_implementation = "eager"  # the only one that returns attention weights
        self._extract_vision_dims(self.cfg)

    def _map_components(self, hf_model: PreTrainedModel, found: Components) -> None:
        components = self.components
        path = {id(module): name for name, module in hf_model.named_modules()}
        stem = str(components["blocks"].name).removesuffix("layers")
        head = str(components["unembed"].name)
        for name in [name for name in components if name.startswith("vision")]:
            del components[name]  # of the model whose text adapter is used
        self._reprefix_components(stem, path[id(found.decoder)] + ".")
        self._reprefix_components(head, path[id(found.head)])
        components.update(_vision_components(hf_model, path))


def _text_adapter(hf_model: PreTrainedModel) -> type[ArchitectureAdapter]:
    config = hf_model.config.get_text_config()
    name = TEXT_ADAPTERS.get(config.model_type)
    try:
        return SUPPORTED_ARCHITECTURES[name or determine_architecture_from_hf_config(config)]
    except ValueError:
        raise SetupError(
            f"{type(hf_model).__name__}: TransformerLens has no adapter for its text model "
            f"{config.model_type!r}"
        ) from None


@cache
def _combined(
    multimodal: type[ArchitectureAdapter], text: type[ArchitectureAdapter]
) -> type[ArchitectureAdapter]:
    return type(f"{multimodal.__name__}With{text.__name__}", (multimodal, text), {})


def _vision_components(
    hf_model: PreTrainedModel, path: dict[int, str]
) -> dict[str, GeneralizedComponent]:
    """Return hook points before the text model: vision_encoder, qformer, vision_projector."""
    found: dict[str, GeneralizedComponent] = {}
    tower = hf_model.get_encoder(modality="image")
    if isinstance(tower, nn.Module) and tower is not hf_model:
        found["vision_encoder"] = GeneralizedComponent(name=path[id(tower)])
    for name in path.values():
        if name.endswith("qformer"):
            found["qformer"] = GeneralizedComponent(name=name)
        elif name.rpartition(".")[2] in PROJECTIONS:
            found["vision_projector"] = VisionProjectionBridge(name=name)
    return found


def _forward_with_ids_first(hf_model: PreTrainedModel) -> MethodType:
    """Return the model's forward, accepting `input_ids` instead of pixels as first argument."""
    plain = type(hf_model).forward

    @wraps(plain)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            kwargs["input_ids"], args = args[0], args[1:]
        return plain(self, *args, **kwargs)

    return MethodType(forward, hf_model)


# Read by TransformerLens, besides its entry points, when it boots a checkpoint by name.
for _name in ARCHITECTURES:
    SUPPORTED_ARCHITECTURES.setdefault(_name, VisionLanguageAdapter)
    MULTIMODAL_ARCHITECTURES.add(_name)

"""Convert a VLM to a TransformerLens bridge, and back.

TransformerLens rewrites the bridged model in place: it replaces modules and makes attention eager.
Both conversions therefore work on a copy of the module tree that shares every weight.
"""

import copy
from itertools import chain
from typing import Any, TypeVar

from torch import nn
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import (
    build_bridge_config_from_hf,
    detect_tokenizer_bos_eos,
)

from attrib.bridges.adapters import VisionLanguageAdapter
from attrib.errors import AttribError
from attrib.model.vlm import VLM

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

"""Models in wrappers (adapters of peft, `torch.compile`, data parallel), and packed weights.

The wrapper `VLM` works on the Hugging Face model within. Adapters of peft stay active there, since
peft puts them into the model's own layers; which of them are active can change at any time. What is
compiled runs uncompiled, because compiled code calls no hooks that it was compiled without.
"""

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from attrib.errors import SetupError

# What runs outside the model within, or needs inputs that no prompt has.
REFUSED = {"XLORA": "mixes its adapters", "POLY": "needs the ids of tasks"}


def unwrapped(model: nn.Module) -> Any:
    """The model inside wrappers, with its adapters active.

    Raises:
        SetupError: An active adapter works outside the model, or its dropout is active.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            raise SetupError(
                f"{type(model).__name__}: the dropout {path} is active, so numbers are random; "
                "call model.eval() first"
            )
    if any("_orig_mod" in module._modules for module in model.modules()):
        return _without_compiled(model, {})
    return model


@contextmanager
def eager() -> Iterator[None]:
    """Run everything uncompiled inside the context, with all its hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _without_compiled(module: Any, done: dict[int, nn.Module]) -> nn.Module:
    """A module with the originals of its compiled parts, in copies of the modules around them.

    Copies share parameters, buffers and hooks with the modules that they are made of.
    """
    if id(module) in done:
        return done[id(module)]
    own: Any = module._orig_mod if "_orig_mod" in module._modules else module
    parts = {
        name: None if part is None else _without_compiled(part, done)
        for name, part in own._modules.items()
    }
    if any(part is not own._modules[name] for name, part in parts.items()):
        own = copy.copy(own)
        own._modules = parts
    done[id(module)] = own
    return own


def _inside(model: Any) -> nn.Module | None:
    """The model that a wrapper holds; None for a model without a wrapper."""
    if "_orig_mod" in model._modules:  # torch.compile(model)
        return model._orig_mod
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return None
    active = model.active_adapter
    for name in [active] if isinstance(active, str) else active:
        refuse_kind(model.peft_config[name].to_dict(), f"{type(model).__name__}: adapter {name!r}")
    return model.get_base_model()


def refuse_kind(config: dict[str, Any], what: str) -> None:
    """Raise SetupError if adapters of a kind work outside the layers of the model.

    Args:
        config: The adapter's config.
        what: Begins the message.
    """
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    why = REFUSED.get(kind)
    if "num_virtual_tokens" in config:
        why = "puts learned vectors in front of every prompt, at positions that no token has"
    if why:
        raise SetupError(
            f"{what} is of the kind {kind}, which {why}; adapters inside the layers are supported, "
            "such as LoRA"
        )


def is_adapted(module: Any) -> bool:
    """Whether a module is a layer of peft around a layer of the model."""
    return hasattr(module, "merged_adapters") and hasattr(module, "get_base_layer")


def works(layer: Any) -> bool:
    """Whether an adapter of a peft layer changes its output, beside its base layer's weights."""
    if layer.disable_adapters or layer.merged:
        return False
    known = layer._get_available_adapters()
    return any(name in known for name in layer.active_adapters)


def _in_use(module: Any) -> Any:
    """A module, or that which peft calls in its place: a copy that was trained whole."""
    while hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        copies, active = module.modules_to_save, module.active_adapters
        names = [] if module.disable_adapters else [name for name in active if name in copies]
        module = copies[names[0]] if names else module.original_module
    return module


def linear_of(module: Any, what: str) -> nn.Linear:
    """The linear layer that a module is, or that a wrapper of peft calls at present.

    Args:
        module: A linear layer, maybe wrapped.
        what: Begins the message.

    Raises:
        SetupError: It is none, or an adapter adds to its output.
    """
    module = _in_use(module)
    if hasattr(module, "token_adapter") or (is_adapted(module) and works(module)):
        raise SetupError(
            f"{what} has an adapter ({type(module).__name__}), so that its weights are not those "
            "in use; merge it first: model = peft_model.merge_and_unload()"
        )
    module = module.get_base_layer() if is_adapted(module) else module
    if not isinstance(module, nn.Linear):
        raise SetupError(f"{what} is not linear; load a model that generates text")
    if is_packed(module):
        raise SetupError(
            f"{what} is quantised, and logits of tokens need its rows; leave it as it is, with "
            'modules_to_not_convert=["lm_head"] or what the quantiser calls this'
        )
    return module


def linears(module: nn.Module, path: str = "") -> Iterator[tuple[str, Any, nn.Linear]]:
    """Linear layers in a module: path, what takes its place in the model, and the layer itself.

    The second is a layer of peft where there are adapters, whose own matrices are left out.
    """
    for name, child in module.named_children():
        here = f"{path}{name}"
        outer: Any = _in_use(child)
        base = outer.get_base_layer() if is_adapted(outer) else outer
        if isinstance(base, nn.Linear):
            yield here, outer, base
        else:
            yield from linears(outer, f"{here}.")


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The named parameters of a module without those of adapters in its layers."""
    layers: list[Any] = [one for one in module.modules() if is_adapted(one)]
    whole = {id(weight) for layer in layers for weight in layer.parameters()}
    base = {id(weight) for layer in layers for weight in layer.get_base_layer().parameters()}
    for name, weight in module.named_parameters():
        if id(weight) not in whole - base:
            yield name, weight


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weight is quantised: integers, 8 bits, or a tensor of another package."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or type(weight) not in (torch.Tensor, nn.Parameter):
        return True
    return not weight.is_floating_point() or weight.element_size() == 1


def refuse_packed(modules: Iterable[tuple[str, nn.Module]], name: str) -> None:
    """Raise SetupError if one of some linear layers, by path, has packed weights.

    Args:
        modules: The layers, whose weights are to be edited.
        name: Name of the model.
    """
    for path, module in modules:
        if is_packed(module):
            raise SetupError(
                f"{name}: the weights of {path} are quantised ({type(module).__name__}) and cannot "
                "be edited; load the model without quantisation, or use an editor that leaves "
                "weights alone (visedit, dualedit, tp, serac, ike)"
            )


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold a tensor, which is a packed one of another package or plain."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


def adapters_of(model: nn.Module) -> dict[str, Any]:
    """By path: the adapters of each layer of peft, their state and scale; empty without peft."""
    found = {}
    for path, module in model.named_modules():
        layer: Any = module
        if is_adapted(layer) or hasattr(layer, "original_module"):
            state = (list(layer.active_adapters), layer.disable_adapters, layer.merged_adapters)
            scale = getattr(layer, "scaling", None)
            found[path] = [*state, dict(scale) if isinstance(scale, dict) else str(scale)]
    return found

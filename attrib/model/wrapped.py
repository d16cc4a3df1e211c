"""The model inside wrappers (peft, `torch.compile`, data parallel), hooks, packed weights.

`VLM` works on the Hugging Face model within a wrapper. Adapters of peft stay active there, since
peft puts them into the model's own layers; which of them are active can change at any time. What is
compiled runs uncompiled, because compiled code calls no hooks that it was compiled without.

No other module registers hooks: contexts do so on entering and remove them on leaving, also after
an error.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from attrib.errors import SetupError

InputFn = Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]
OutputFn = Callable[[Any], Tensor | None]
CallFn = Callable[[tuple[Any, ...], dict[str, Any]], Any]

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
    if isinstance(model, PreTrainedModel) or not hasattr(model, "peft_config"):
        return None
    active = model.active_adapter
    for name in [active] if isinstance(active, str) else active:
        refuse_kind(model.peft_config[name].to_dict(), f"{type(model).__name__}: adapter {name!r}")
    return model._modules.get("base_model", model._modules.get("model"))


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
    packed: Any = tensor
    names, _ = packed.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


class StopForward(Exception):
    """Raised inside a forward pass to end it early with a value."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


@contextmanager
def on_modules(
    inputs: Iterable[tuple[nn.Module, InputFn]], outputs: Iterable[tuple[nn.Module, OutputFn]]
) -> Iterator[None]:
    """`on_input` and `on_output` of many modules: one context costs less than one each."""
    handles = [_before(module, fn) for module, fn in inputs]
    handles += [_after(module, fn, whole=False) for module, fn in outputs]
    try:
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def on_input(module: nn.Module, fn: InputFn) -> Iterator[None]:
    """Call `fn(hidden states, other arguments, keyword arguments)` before `module` runs."""
    with on_modules([(module, fn)], []):
        yield


@contextmanager
def on_output(module: nn.Module, fn: OutputFn, *, whole: bool = False) -> Iterator[None]:
    """Call `fn` on the hidden states that `module` returns; a returned tensor replaces them.

    With `whole`, `fn` gets all that the module returns.
    """
    handle = _after(module, fn, whole)
    try:
        with eager():
            yield
    finally:
        handle.remove()


@contextmanager
def on_call(module: nn.Module, fn: CallFn) -> Iterator[None]:
    """Call `fn(arguments, keyword arguments)` before `module` runs; a returned pair replaces them.

    The function gets all arguments, for modules that are not given hidden states first.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return fn(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with eager():
            yield
    finally:
        handle.remove()


@contextmanager
def in_place_of(modules: Iterable[nn.Module], fn: Callable[..., Any]) -> Iterator[None]:
    """Run `fn(hidden states, ...)` in place of what modules compute; their hooks act as ever."""
    own = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module, _ in own:
            module.forward = fn
        with eager():
            yield
    finally:
        for module, before in own:
            del module.forward
            if before is not None:  # set by another package
                module.forward = before


def _before(module: nn.Module, fn: InputFn) -> RemovableHandle:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            fn(args[0], args[1:], kwargs)
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            fn(kwargs["hidden_states"], (), rest)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(module: nn.Module, fn: OutputFn, whole: bool) -> RemovableHandle:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = fn(output if whole else first_tensor(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    return module.register_forward_hook(hook)


def first_tensor(output: Any) -> Tensor:
    """The hidden states of a module's output: alone, or (older transformers) first of a tuple."""
    return output[0] if isinstance(output, tuple) else output

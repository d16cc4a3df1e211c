"""Functions that run at the input or output of a module: the only module that registers hooks.

Hooks are registered on entering a context and removed on leaving it, also after an error.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attrib.model.wrapped import eager

InputFn = Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]
OutputFn = Callable[[Any], Tensor | None]


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

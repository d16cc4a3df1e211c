"""Where the parts of a model run: whole on a device, split over several, or offloaded.

accelerate's hooks load the weights of an offloaded module when it is called and free them again.
Between two calls they are on the device "meta" and have no values: what reads or changes weights
opens `loaded(module)` first.
"""

import copy
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn

from attrib.errors import SetupError

DeviceMap = str | Mapping[str, Any] | None
NAMED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
OFFLOADED = ("cpu", "disk")


def execution_device(module: nn.Module) -> torch.device:
    """Device on which a module runs, and to which its inputs go."""
    for part in module.modules():
        for hook in _align_hooks(part):
            if hook.execution_device is not None:
                return _as_device(hook.execution_device)
    weight = next(module.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


@contextmanager
def loaded(*modules: nn.Module) -> Iterator[None]:
    """Keep the weights that offloaded modules have themselves on their device inside the context.

    They are loaded as they are stored, and changes to them are forgotten on leaving. For other
    modules this does nothing.
    """
    with ExitStack() as stack:
        for module in modules:
            for hook in _align_hooks(module):
                if hook.offload:
                    stack.enter_context(_kept(module, hook))
        yield


def loaded_weight(module: nn.Module) -> Tensor:
    """The weight of a module, with its values even where it is offloaded."""
    with loaded(module):
        weight: Any = module.weight
        return weight


@contextmanager
def loaded_weights(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters called `names`, by name; their modules stay `loaded` inside the context."""
    names = list(names)
    holders = {name.rpartition(".")[0]: name for name in names}
    with loaded(*(model.get_submodule(path) for path in holders)):
        yield {name: model.get_parameter(name) for name in names}


def each_weight(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter with its name, as `named_parameters`, loaded while it is looked at."""
    for name, _ in list(model.named_parameters()):
        with loaded_weights(model, [name]) as weights:
            yield name, weights[name]


def float_copy(module: nn.Module) -> nn.Module:
    """A copy of a module without submodules, in float32, on its device and without hooks."""
    with loaded(module):
        bare = copy.copy(module)
        bare.__dict__ = {
            name: value
            for name, value in vars(module).items()
            if name not in ("forward", "_old_forward", "_hf_hook")
        }
        return copy.deepcopy(bare).float()


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU if its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def on_each_device(tensor: Tensor) -> Callable[[torch.device], Tensor]:
    """A function that returns the tensor on a device, copied there once."""
    copies = {tensor.device: tensor}

    def on(device: torch.device) -> Tensor:
        if device not in copies:
            copies[device] = tensor.to(device)
        return copies[device]

    return on


def _align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # of a SequentialHook
    return [one for one in hooks if isinstance(one, AlignDevicesHook)]


def _as_device(given: Any) -> torch.device:
    """Accelerate names GPUs by their number."""
    if isinstance(given, int):
        kind = torch.accelerator.current_accelerator()
        return torch.device(kind.type if kind else "cuda", given)
    return torch.device(given)


@contextmanager
def _kept(module: nn.Module, hook: AlignDevicesHook) -> Iterator[None]:
    hook.pre_forward(module)
    hook.offload = False  # calls of the module neither load nor free
    try:
        yield
    finally:
        hook.offload = True
        hook.post_forward(module, None)


@dataclass(frozen=True)
class Placement:
    """Where weights go.

    Attributes:
        device_map: As `from_pretrained` takes it; None for the CPU, where they are read anyway.
        on_cpu: Whether the model computes on the CPU.
    """

    device_map: Any
    on_cpu: bool

    @classmethod
    def of(cls, device: str, device_map: DeviceMap) -> "Placement":
        """The placement that options ask for.

        Args:
            device: One device, or "auto" for a GPU if there is one.
            device_map: "auto" or another name of accelerate's, or a map from parts of the model to
                devices, "cpu" or "disk", also as JSON; takes the place of `device`.

        Raises:
            SetupError: A device cannot be used, both options are given, or the map is malformed.
        """
        if device_map is None:
            target = _device(device)
            return cls(None if target.type == "cpu" else {"": target}, target.type == "cpu")
        if device != "auto":
            raise SetupError(f"device {device!r} and a device_map are given: give one of them")
        parts = _parse(device_map)
        if isinstance(parts, str):
            return cls(parts, not torch.accelerator.is_available())
        for one in parts.values():
            if one not in OFFLOADED:
                _device(one)
        return cls(parts, all(one in OFFLOADED for one in parts.values()))

    def load(self, from_pretrained: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Call `from_pretrained`, which reads each weight straight to its device.

        Raises:
            SetupError: The map names a part that the model does not have.
        """
        if self.device_map is None:
            return from_pretrained(*args, **options)
        folder = TemporaryDirectory(prefix="attrib-offload-")
        options |= {"device_map": self.device_map, "offload_folder": folder.name}
        model, report = from_pretrained(*args, **options)
        weakref.finalize(model, folder.cleanup)
        if not isinstance(self.device_map, str):
            _check_parts(self.device_map, model)
        return model, report


def _parse(device_map: str | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(device_map, str) and not device_map.lstrip().startswith("{"):
        if device_map in NAMED_MAPS:
            return device_map
        raise SetupError(
            f"device_map {device_map!r}: expected one of {', '.join(NAMED_MAPS)}, or a map from "
            'parts of the model to devices, such as {"model": 0, "lm_head": "cpu"}'
        )
    try:
        parts = json.loads(device_map) if isinstance(device_map, str) else dict(device_map)
    except ValueError as error:
        raise SetupError(f"device_map {device_map!r} is not JSON: {error}") from error
    except TypeError as error:
        raise SetupError(
            f"device_map {device_map!r} is a {type(device_map).__name__}; expected a name or a map"
        ) from error
    if not parts:
        raise SetupError("device_map is empty: give each part of the model a device")
    return parts


def _check_parts(device_map: Mapping[str, Any], model: Any) -> None:
    known = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if unknown := [name for name in device_map if name not in known]:
        parts = ", ".join(name for name, _ in model.named_children())
        raise SetupError(
            f"device_map: the model has no part {unknown[0]!r}; its parts are {parts}, and theirs, "
            "as in `model.named_modules()`"
        )


def _device(device: str | int) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SetupError(f"device {device!r} cannot be used here; try --device cpu") from error
    return target

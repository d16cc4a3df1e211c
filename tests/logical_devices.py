"""Devices without hardware: CPU tensors that carry a label, and an error where two labels meet.

Inside `logical_devices()` every torch function checks its tensors as a machine with several devices
would, and labels its results: numbers are those of the CPU, bit for bit. Tensors without a label
are on the CPU. `split(vlm)` returns a copy of a model whose parts are on two devices, with
accelerate's own hooks between them, as `device_map="auto"` makes them.
"""

import contextlib
import copy
from itertools import chain
from unittest import mock

import torch
from accelerate import cpu_offload, disk_offload
from accelerate.big_modeling import attach_align_device_hook_on_blocks
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrib.model.vlm import VLM

CPU = torch.device("cpu")
# They take tensors of several devices: moves, and what never touches the data.
CROSSING = {"to", "copy_", "cpu", "cuda", "set_", "__set__", "is_", "is_set_to", "module_load",
            "_has_compatible_shallow_copy_type",
            "_pack_padded_sequence", "lstm"}  # fmt: skip
FOREACH = "_foreach_"  # of optimizers, which group their tensors by the real device
INDEXING = {"__getitem__", "__setitem__"}  # a CPU index may select from any device
MOVES = {"to", "cpu"}
HOST_ONLY = {"numpy", "__array__", "from_numpy", "data_ptr"}
LABELS = "_logical_device"


def device_of(tensor):
    """The label of a tensor."""
    return tensor.__dict__.get(LABELS, CPU)


def place(tensor, device):
    """Label a tensor, in place."""
    tensor.__dict__[LABELS] = torch.device(device)
    return tensor


class DeviceMismatch(RuntimeError):
    """A function got tensors of two devices."""


class LogicalDevices(TorchFunctionMode):
    """Checks and labels the tensors of every torch function.

    `calls` counts them by device; `uploads` are the shapes of what the CPU gave to others.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.uploads = {}, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == Tensor.device.__get__:
            return device_of(args[0])
        if name == "__get__" and not isinstance(result := func(*args), Tensor):
            return result  # a shape, a dtype, a flag
        tensors = list(_tensors_in((*args, *kwargs.values())))
        if func is torch.autograd.grad:  # a gradient is where its input is
            inputs = [args[1]] if isinstance(args[1], Tensor) else args[1]
            pairs = zip(func(*args, **kwargs), inputs, strict=True)
            return tuple(grad if grad is None else place(grad, device_of(x)) for grad, x in pairs)
        asked = _take_device(name, args := list(args), kwargs)
        device = self._device(name, tensors, args) if asked is None else asked
        if name in HOST_ONLY and device != CPU:
            raise DeviceMismatch(f"{name} of a tensor on {device}")
        result = func(*args, **kwargs)
        if name in MOVES and device_of(tensors[0]) != device:
            if device_of(tensors[0]) == CPU:
                self.uploads.append(tuple(tensors[0].shape))
            if result is tensors[0]:
                result = result.clone()  # devices share no memory
        self.calls[device] = self.calls.get(device, 0) + 1
        if name == "_pack_padded_sequence":
            return place(result[0], device), result[1]  # sizes stay on the CPU
        if func == Tensor.data.__set__:
            place(args[0], device_of(args[1]))
        return self._labelled(result, device, tensors)

    def _device(self, name, tensors, args):
        found = {device_of(one) for one in tensors if one.ndim or device_of(one) != CPU}
        if name in INDEXING and isinstance(args[0], Tensor):
            found = {device_of(args[0])} | (found - {CPU})
        if name == "cpu":
            return CPU
        crosses = name in CROSSING or name.startswith(FOREACH)
        if len(found) > 1 and not crosses:
            shapes = [(tuple(one.shape), str(device_of(one))) for one in tensors]
            raise DeviceMismatch(f"{name} of tensors on several devices: {shapes}")
        device = device_of(tensors[0]) if crosses and tensors else None
        return device or next(iter(found), CPU)

    def _labelled(self, result, device, inputs):
        for one in _tensors_in((result,)):
            if not any(one is other for other in inputs):
                place(one, device)
                if device.type == "mps" and one.dtype == torch.float64:
                    raise TypeError("mps has no float64")
        return result


def _tensors_in(values):
    """All tensors in sequences and mappings, without the costs of a tree for each call."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())


def _take_device(name, args, kwargs):
    """The device that a call asks for, if any; the CPU takes its place in the arguments."""
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = CPU
    for i, one in enumerate(args[1:], 1) if name in ("to", "type_as") else ():
        if isinstance(one, Tensor):
            asked = device_of(one)
        elif isinstance(one, str | torch.device):
            asked, args[i] = one, CPU
    return None if asked is None else torch.device(asked)


@contextlib.contextmanager
def logical_devices():
    """Check and label the tensors of every torch function inside."""
    # No torch functions: they would lose the label.
    made, copied = torch.nn.Parameter.__new__, torch.nn.Parameter.__deepcopy__

    def make(cls, data=None, requires_grad=True):
        parameter = made(cls, data, requires_grad)
        return parameter if data is None else place(parameter, device_of(data))

    def copy_of(parameter, memo):
        return place(copied(parameter, memo), device_of(parameter))

    labelled = {"__new__": make, "__deepcopy__": copy_of}
    with mock.patch.multiple(torch.nn.Parameter, **labelled), LogicalDevices() as mode:
        yield mode


def split(vlm, first="xpu:0", second="xpu:1"):
    """A copy of a model with its later layers and final norm on a second device."""
    model = copy.deepcopy(vlm.model)
    names = {id(module): name for name, module in model.named_modules()}
    moved = VLM(model, vlm.processor, name=vlm.name)
    later = [*moved.layers[vlm.num_layers // 2 :], moved.components.norm]
    devices = {"": torch.device(first)} | {names[id(one)]: torch.device(second) for one in later}

    def of(name):
        inside = [part for part in devices if not part or f"{name}.".startswith(f"{part}.")]
        return devices[max(inside, key=len)]

    for name, value in chain(model.named_parameters(), model.named_buffers()):
        place(value, of(name))
    # The hooks are made for the CPU, where all weights really are, and then redirected.
    attach_align_device_hook_on_blocks(
        model, execution_device=dict.fromkeys(devices, CPU), offload=dict.fromkeys(devices, False)
    )
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = of(name)
    return moved


def offloaded(vlm, how, folder=None):
    """A copy of a model whose weights are in main memory ("cpu") or in files ("disk")."""
    model = copy.deepcopy(vlm.model)
    if how == "disk":
        disk_offload(model, folder, execution_device=CPU)
    else:
        cpu_offload(model, execution_device=CPU)
    return VLM(model, vlm.processor, name=vlm.name)

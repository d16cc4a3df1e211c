"""Where a checkpoint's weights go: one device, or a map from its parts to devices."""

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from attrib.errors import SetupError

DeviceMap = str | Mapping[str, Any] | None
NAMED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
OFFLOADED = ("cpu", "disk")


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
        """Call `from_pretrained`, which reads each weight straight to its device."""
        if self.device_map is None:
            return from_pretrained(*args, **options)
        folder = TemporaryDirectory(prefix="attrib-offload-")
        options |= {"device_map": self.device_map, "offload_folder": folder.name}
        model, report = from_pretrained(*args, **options)
        weakref.finalize(model, folder.cleanup)
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
    if not parts:
        raise SetupError("device_map is empty: give each part of the model a device")
    return parts


def _device(device: str | int) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SetupError(f"device {device!r} cannot be used here; try --device cpu") from error
    return target

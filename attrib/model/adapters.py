"""Adapters of peft: in the layers of a model, and as folders that name the model they belong to.

An adapter is put into the layers of its base model and stays apart from the base weights there.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn

from attrib.errors import SetupError
from attrib.files import embedded_names
from attrib.model.wrapped import is_packed, refuse_kind

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(name: str, options: dict[str, Any]) -> Path | None:
    """The folder of an adapter without a model: a local one, or a downloaded copy.

    Args:
        name: A folder, or an id on the Hugging Face hub whose repository has no config.json.
        options: How the hub is asked.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        known = ("revision", "local_files_only")
        asked: dict[str, Any] = {key: options[key] for key in known if key in options}
        try:
            folder = Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **asked))
        except (OSError, ValueError):  # what the model itself is missing is said instead
            return None
    alone = (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
    return folder if alone else None


def base_of(folder: Path, name: str) -> tuple[str, str | None]:
    """Name and revision of the base model in an adapter's config.

    Raises:
        SetupError: The adapter is of a kind that is not supported, its weights are no safetensors,
            or its base model is not there.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        refuse_kind(config, f"{name}: the adapter")
        base = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SetupError):
            raise
        raise SetupError(
            f"{name}: {CONFIG} is damaged ({error!r}); save the adapter again, with save_pretrained"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise SetupError(
            f"{name}: the folder of the adapter has no {WEIGHTS}; save the adapter again, with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    return _found(base, folder, name), config.get("revision")


def _found(base: Any, folder: Path, name: str) -> str:
    """A base model's name, or its folder where that is relative to the adapter's."""
    text = base if isinstance(base, str) else ""
    path = Path(text).expanduser()
    if text in embedded_names() or (text and path.is_dir()):
        here = path
    elif text and (folder / path).is_dir():
        here = folder / path
    elif text and not path.is_absolute() and not text.startswith(".") and text.count("/") == 1:
        return text
    else:
        raise SetupError(
            f"{name}: {CONFIG} names the base model {base!r}, neither a folder here nor an "
            "id on the Hugging Face hub; write its name or its folder there, in "
            "base_model_name_or_path"
        )
    if (here / CONFIG).is_file() and not (here / "config.json").is_file():
        raise SetupError(
            f"{name}: its base model {base!r} is an adapter itself; save that merged, with "
            "merge_and_unload().save_pretrained(folder)"
        )
    return str(here)


def with_adapter(model: Any, folder: Path, name: str, complete: bool) -> Any:
    """A base model with the adapter of a folder in its layers, in evaluation mode and frozen.

    Args:
        model: The base model, which is changed.
        folder: The adapter's.
        name: Begins messages.
        complete: Whether every weight of the adapter must be in the folder.

    Raises:
        SetupError: peft is not installed, or the adapter does not fit the model.
    """
    if any(weight.is_meta for weight in model.parameters()):
        raise SetupError(
            f"{name}: an adapter cannot be put into a model that is offloaded; load it without, or "
            "save the merged model, with merge_and_unload().save_pretrained(folder)"
        )
    try:
        from peft import PeftModel
    except ImportError as error:
        raise SetupError(
            f"{name}: adapters need the package peft, which is not installed; pip install peft"
        ) from error
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            wrapped = PeftModel.from_pretrained(
                model, str(folder), torch_device=str(next(model.parameters()).device)
            )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise SetupError(f"{name}: the adapter does not fit its base model: {said}") from error
    missing = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
    if complete and missing:
        raise SetupError(
            f"{name}: the folder lacks weights of the adapter ({missing[0][:200]}); save it again, "
            "or load it as it is with verify=False"
        )
    return wrapped.eval().requires_grad_(False)


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


def adapters_of(model: nn.Module) -> dict[str, Any]:
    """By path: the adapters of each layer of peft, their state and scale; empty without peft."""
    found = {}
    for path, module in model.named_modules():
        layer: Any = module
        if hasattr(layer, "merged_adapters") and hasattr(layer, "active_adapters"):
            state = (list(layer.active_adapters), layer.disable_adapters, layer.merged_adapters)
            scale = getattr(layer, "scaling", None)
            found[path] = [*state, dict(scale) if isinstance(scale, dict) else str(scale)]
    return found

"""Folders of peft that hold an adapter and the name of the model it belongs to.

An adapter is put into the layers of its base model and stays apart from the base weights there.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from attrib.errors import SetupError
from attrib.files import embedded_names
from attrib.model.wrapped import refuse_kind

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

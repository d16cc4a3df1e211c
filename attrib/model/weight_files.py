"""Files of weights: those that cannot be used are refused by name."""

import json
import logging
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from attrib.errors import SetupError, describe

FLOATS = ("F64", "F32", "F16", "BF16")
TOO_LARGE = 2  # times the numbers that are stored
logger = logging.getLogger("attrib")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Packages by method of quantisation: the name to import, and the one to install.
QUANTISERS: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}


def check_files(folder: Path, name: str) -> None:
    """Refuse a local folder whose weights are pickles, or whose shards are not all there.

    Raises:
        SetupError: The message names the file.
    """
    if any(folder.glob("*.safetensors")):
        _check_index(folder, name)
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise SetupError(
            f"{name}: {pickles[0]} is a pickle, which can run code when read; convert it where you "
            "trust it, with from_pretrained(...).save_pretrained(folder)"
        )
    raise SetupError(f"{name}: the folder has no *.safetensors; give one made by save_pretrained")


def check_quantisation(raw: dict[str, Any], name: str) -> None:
    """Refuse a config whose quantisation cannot be read here.

    Raises:
        SetupError: The message names the method, and the package to install.
    """
    parts = (raw, *(part for part in raw.values() if isinstance(part, dict)))
    for how in (part["quantization_config"] for part in parts if part.get("quantization_config")):
        if not isinstance(how, dict) or not isinstance(how.get("quant_method", ""), str | None):
            raise SetupError(
                f"{name}: its config.json has the quantization_config {str(how)[:100]}; expected "
                "an object with the name of a quant_method"
            )
        old = how.get("load_in_4bit") or how.get("load_in_8bit")
        method = how.get("quant_method") or ("bitsandbytes" if old else None)
        known = {*QUANTISERS, *AUTO_QUANTIZER_MAPPING}
        if method not in known:
            raise SetupError(
                f"{name}: its weights are quantised by the method {method!r}, unknown to this "
                f"version of transformers; known are {', '.join(sorted(known))}"
            )
        if method.startswith("bitsandbytes"):  # a line for each call of each layer
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        modules = QUANTISERS.get(method, {})
        if missing := [pip for module, pip in modules.items() if not _is_installed(module)]:
            raise SetupError(
                f"{name}: its weights are quantised by {method}, which needs the package "
                f"{missing[0]}; pip install {' '.join(missing)}"
            )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False


def check_weights(name: str, report: dict[str, Any], complete: bool) -> None:
    """Refuse weights of another shape, and missing ones if `complete`; the log names the others.

    Raises:
        SetupError: The message names a weight.
    """
    for weight, found, expected in sorted(report["mismatched_keys"]):
        raise SetupError(
            f"{name}: the weight {weight} has the shape {tuple(found)}, and the model of its "
            f"config.json {tuple(expected)}; give the weights that belong to this config"
        )
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    other = f"weights that the model does not have ({len(extra)}), {extra[0]}" if extra else ""
    if missing:
        lacking = f"the checkpoint lacks {len(missing)} of the model's weights, {missing[0]}"
        instead = f", and has {other}" if extra else ""
        if complete:
            raise SetupError(
                f"{name}: {lacking} among them{instead}; download it again, or load it as it is "
                "with verify=False"
            )
        logger.warning(f"{name}: {lacking} among them{instead}; these are random")
    elif extra:
        logger.warning(f"{name}: the checkpoint has {other} among them; they are not used")


def check_size(config: Any, folder: Path, name: str) -> None:
    """Refuse a config of a far larger model than a folder's weights, before it takes memory.

    A config without `text_config`, for instance, is one of billions of parameters.

    Raises:
        SetupError: The message has both sizes.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        stored = sum(math.prod(shape) for shape in _stored_shapes(folder))
    except Exception:  # of any class; what reads the weights next says what is wrong
        return
    wanted = sum(weight.numel() for weight in model.parameters())
    if wanted > TOO_LARGE * stored:
        raise SetupError(
            f"{name}: its config.json is of a model with {wanted:,} parameters, and its weights "
            f"are {stored:,} numbers; give the config that belongs to them (is its text_config or "
            "vision_config missing?)"
        )


def _stored_shapes(folder: Path) -> Iterator[list[int]]:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            yield from (file.get_slice(weight).get_shape() for weight in file.keys())  # noqa: SIM118


def check_dtypes(folder: Path, name: str) -> None:
    """Refuse weights of a checkpoint without quantisation that are not floating-point numbers.

    They would be cast silently, without the scales that they need.

    Raises:
        SetupError: The message names the weight and its file.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for weight in file.keys():  # noqa: SIM118
                dtype = file.get_slice(weight).get_dtype()
                is_weight = weight.endswith((".weight", ".bias")) and dtype not in FLOATS
                if is_weight or dtype.endswith("8") or dtype.startswith("F8"):
                    raise SetupError(
                        f"{name}: the weight {weight} in {path.name} has the dtype {dtype}, and "
                        "config.json has no quantization_config that says how to read it; give "
                        "the config that belongs to it, or weights in float16, bfloat16 or float32"
                    )


def damaged_file(folder: Path) -> str:
    """The first weight file of a local folder that cannot be read, in words, or ""."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError):
            return f", {path.name} is damaged"
    return ""


def _check_index(folder: Path, name: str) -> None:
    """Refuse a local folder with an index of shards that cannot be read, or names missing files.

    Raises:
        SetupError: The message names the index and what is wrong.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return
    if not index.is_file():
        raise SetupError(
            f"{name}: the folder has neither {single.name} nor {index.name}, which lists shards; "
            "download it again"
        )
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(shard for shard in shards if not (folder / Path(shard).name).is_file())
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise SetupError(
            f"{name}: {index.name} is damaged ({describe(error)}); download it again"
        ) from error
    if absent:
        raise SetupError(
            f"{name}: {len(absent)} of {len(shards)} shards are missing, {absent[0]} among them; "
            "download it again"
        )

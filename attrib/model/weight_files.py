"""Weights: files that cannot be used are refused by name; a fingerprint of those in use."""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from attrib.errors import SetupError, describe
from attrib.model.adapters import adapters_of
from attrib.model.devices import loaded
from attrib.model.vlm import VLM
from attrib.model.wrapped import plain_parts

FLOATS = ("F64", "F32", "F16", "BF16")
SAMPLED = 256  # elements of each weight in the fingerprint
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


def fingerprint(vlm: VLM) -> str:
    """SHA-256 of the model's config and of evenly spaced elements of each weight.

    Distinguishes models that share a name or a folder, edited ones too, at a cost independent of
    their size. It depends neither on the device nor on whether the model was saved before.
    """
    digest = hashlib.sha256(_settings(vlm).encode())
    if adapters := adapters_of(vlm.model):  # the same weights with another adapter active
        digest.update(json.dumps(adapters, sort_keys=True).encode())
    for name, tensor in vlm.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # extra state of some layers
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(_sample(tensor))
            continue
        with loaded(holder := vlm.model.get_submodule(name.rpartition(".")[0])):
            tensor = getattr(holder, name.rpartition(".")[2])
            digest.update(b"" if tensor.is_meta else _sample(tensor))
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    """Evenly spaced elements, also of the parts of a quantised tensor."""
    parts = [part.detach().flatten() for part in plain_parts(tensor)]
    some = [part[:: max(1, part.numel() // SAMPLED)].cpu().contiguous() for part in parts]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in some)


def _settings(vlm: VLM) -> str:
    """The model's config as text, without its path and the version that read it.

    The class and the dtype are those in use: loading and saving write them into the config.
    """
    dtype = str(vlm.dtype).removeprefix("torch.")

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            kept |= {"dtype": dtype} if "dtype" in kept else {}
            how = value.get("quantization_config")  # torchao's holds names that start with "_"
            kept |= {} if how is None else {"quantization_config": how}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    config = {**vlm.model.config.to_dict(), "architectures": [type(vlm.model).__name__]}
    return json.dumps(plain(config), sort_keys=True, default=str)

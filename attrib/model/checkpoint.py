"""Read a model and its processor: an embedded name, a folder, or a Hugging Face id.

Unsupported models are refused before their weights are read. Weights come from safetensors only,
since reading a pickle can run code.
"""

import re
from pathlib import Path
from typing import Any, get_args

from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils.hub import cached_file

from attrib.errors import SetupError
from attrib.files import WEIGHTS, embedded_names
from attrib.model.adapters import CONFIG as ADAPTER
from attrib.model.adapters import adapter_folder, base_of, with_adapter
from attrib.model.assembly import Assembly
from attrib.model.components import refuse_encoder_decoder
from attrib.model.devices import DeviceMap, Placement
from attrib.model.image_placeholder import quiet
from attrib.model.processor_files import first_line, load_processor
from attrib.model.weight_files import (
    check_dtypes,
    check_files,
    check_quantisation,
    check_size,
    check_weights,
    damaged_file,
)
from attrib.vocabulary import Dtype

# What `from_pretrained` raises on damaged files, those of settings included.
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)


def read_checkpoint(
    name: str,
    device: str,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    complete: bool = True,
    device_map: DeviceMap = None,
    processor_from: str | None = None,
) -> tuple[Any, Any]:
    """Return the model, in evaluation mode and frozen, and its processor.

    Args are those of `attrib.load`; `processor_from` is where the processor is, if elsewhere.

    Raises:
        SetupError: See `attrib.load`.
    """
    if dtype not in get_args(Dtype):
        raise SetupError(f"dtype {dtype!r}: expected one of {', '.join(get_args(Dtype))}")
    placement = Placement.of(device, device_map)
    source = _source(name)
    is_folder = Path(source).is_dir()
    if trust_remote_code and revision is None and not is_folder:
        raise SetupError(
            f"{name}: code from a repository runs only with a pinned --revision, a commit you read"
        )
    if revision is not None and is_folder:
        raise SetupError(f"{name}: a folder has no revisions; leave revision {revision!r} out")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    if HF_HUB_OFFLINE:
        options["local_files_only"] = True
    if _has_no_model(source, options) and (folder := adapter_folder(source, options)):
        base, revision = base_of(folder, name)
        revision = None if Path(base).is_dir() else revision
        where = device, dtype, revision, trust_remote_code, complete, device_map, processor_from
        model, processor = read_checkpoint(base, *where)
        return with_adapter(model, folder, name, complete), processor
    parts = Assembly.of(Path(source), name)
    if is_folder and parts is None:
        check_files(Path(source), name)
    config: Any = _config(source, name, options)
    is_plain = getattr(config, "quantization_config", None) is None
    if complete and is_folder and parts is None and is_plain:
        with quiet():
            check_size(config, Path(source), name)
    if parts and processor_from is None:
        processor = parts.processor(config)
    else:
        processor = load_processor(source, name, config, options, processor_from)
    if dtype == "auto" and placement.on_cpu:
        dtype = "float32"
    try:
        auto: Any = AutoModelForImageTextToText if parts is None else LlavaForConditionalGeneration
        where, given = (None, {"state_dict": parts.weights()}) if parts else (source, options)
        with quiet():  # its report of a line per weight: one line of ours follows
            model, report = placement.load(
                auto.from_pretrained,
                where,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **given,
            )
    except UNREADABLE as error:
        where = damaged_file(Path(source))
        raise SetupError(f"{name}: cannot read its weights{where}: {first_line(error)}") from error
    if parts:  # transformers does not know where the weights are from
        model.name_or_path = config.name_or_path = source
    check_weights(name, report, complete)
    if getattr(config, "quantization_config", None) is None:
        check_dtypes(_weights_folder(source, options), name)
    return model.eval().requires_grad_(False), processor


def _source(name: str) -> str:
    if (WEIGHTS / name / "config.json").is_file() and name in embedded_names():
        return str(WEIGHTS / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", ADAPTER)):
            raise SetupError(
                f"{name}: the folder has no config.json; give one made by save_pretrained"
            )
        return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise SetupError(
        f"unknown model {name!r}: give an embedded name ({', '.join(embedded_names()) or 'none'}), "
        "a folder that exists, or a Hugging Face id like llava-hf/llava-1.5-7b-hf"
    )


def _weights_folder(source: str, options: dict[str, Any]) -> Path:
    """The folder of the weights of a checkpoint that was read: a local one, or in the cache."""
    where = {name: value for name, value in options.items() if name != "trust_remote_code"}
    return Path(str(cached_file(source, "config.json", **where))).parent


def _has_no_model(source: str, options: dict[str, Any]) -> bool:
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source, **options)
    except OSError:
        return True
    except (TypeError, AttributeError):  # it holds no object, as `_config` says
        return False
    # transformers reads an adapter's config in its place.
    return isinstance(raw, dict) and "model_type" not in raw


def _config(source: str, name: str, options: dict[str, Any]) -> PreTrainedConfig:
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source, **options)
        if not isinstance(raw, dict):
            raise TypeError(f"but a {type(raw).__name__}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        hint = first_line(error)
        if Path(source).is_dir():
            hint = f"it is not a JSON object ({hint})"
        elif HF_HUB_OFFLINE:
            hint = "it is not in the local cache and HF_HUB_OFFLINE is set"
        raise SetupError(f"{name}: cannot read its config.json: {hint}") from error
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING and "auto_map" not in raw:
        raise SetupError(
            f"{name}: this version of transformers has no model_type {model_type!r}; update it"
        )
    if model_type not in CONFIG_MAPPING and not options["trust_remote_code"]:
        raise SetupError(
            f"{name}: the model runs code from its repository; read that code, then pass "
            "--trust-remote-code and pin --revision to the commit you read"
        )
    check_quantisation(raw, name)
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # of any class: configs check their own fields
        told = " ".join(str(error).split())[:300]
        raise SetupError(f"{name}: its config.json cannot be used: {told}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and "auto_map" not in raw:
        raise SetupError(f"{name}: {model_type} is not an image-text-to-text model of transformers")
    refuse_encoder_decoder(config, name)
    return config

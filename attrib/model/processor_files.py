"""Read a model's processor: from the model's own place, or from another one."""

from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.errors import SetupError
from attrib.files import WEIGHTS, embedded_names

FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
ELSEWHERE = "if its processor is elsewhere, name that place: --processor NAME_OR_FOLDER"


def load_processor(
    source: str,
    name: str,
    config: PreTrainedConfig,
    options: dict[str, Any],
    elsewhere: str | None = None,
) -> Any:
    """The processor of a model.

    Args:
        source: Folder or id of the model.
        name: Of the model, for messages.
        config: Of the model.
        options: With which the model is read.
        elsewhere: Embedded name, folder or id of the processor, if it is in another place.

    Raises:
        SetupError: It cannot be read.
    """
    if elsewhere is not None:
        source, options = _source(elsewhere, options)
        name = f"--processor {elsewhere}"
    processor_class: Any = PROCESSOR_MAPPING.get(type(config), None)
    try:
        if (
            processor_class is None
            or "video_processor" not in processor_class.get_attributes()
            or is_torchvision_available()
        ):
            processor = AutoProcessor.from_pretrained(source, **options)
        else:
            settings, _ = processor_class.get_processor_dict(source, **options)
            parts = {
                "tokenizer": AutoTokenizer.from_pretrained(source, **options),
                "image_processor": None,
                "video_processor": BaseVideoProcessor(),
            }
            arguments = [parts[part] for part in processor_class.get_attributes()]
            processor = without_video_check(processor_class).from_args_and_dict(arguments, settings)
        # One backend everywhere, so that scores do not depend on installed packages.
        processor.image_processor = AutoImageProcessor.from_pretrained(
            source, backend="pil", **options
        )
    except Exception as error:  # of any class: tokenizers raises Exception itself
        hint = "" if elsewhere else _hint(source)
        raise SetupError(f"{name}: cannot load its processor: {first_line(error)}{hint}") from error
    return processor


def without_video_check(processor_class: type) -> Any:
    """Return a processor class that accepts any video processor.

    transformers requires one that needs torchvision, even for images only.
    """
    return type(
        processor_class.__name__,
        (processor_class,),
        {"check_argument_for_proper_class": lambda _self, _name, argument: type(argument)},
    )


def _source(given: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a processor is that was named apart from its model, and how it is read.

    A revision belongs to the model, and so does the permission to run code from a repository.

    Raises:
        SetupError: It is a folder without a processor.
    """
    options = {**options, "revision": None}
    if given in embedded_names():
        return str(WEIGHTS / given), options
    folder = Path(given).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in FILES):
            raise SetupError(
                f"--processor {given}: none of {', '.join(FILES)} is there; give the folder that "
                "the processor's save_pretrained wrote"
            )
        return str(folder), options
    if folder.is_absolute() or given.startswith(".") or given.count("/") != 1:
        raise SetupError(
            f"--processor {given}: no such folder; give one, or a Hugging Face id such as "
            "llava-hf/llava-1.5-7b-hf"
        )
    return given, {**options, "trust_remote_code": False}


def _hint(source: str) -> str:
    """What to do about a folder that has no processor at all."""
    folder = Path(source)
    offline = HF_HUB_OFFLINE and not folder.is_dir()
    missing = folder.is_dir() and not any((folder / file).is_file() for file in FILES)
    return f"; {ELSEWHERE}" if missing or offline else ""


def first_line(error: Exception) -> str:
    """The first line of an error's message with text, or its class."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Load a model: read the checkpoint, wrap it, verify it."""

from pathlib import Path

from attrib.checks import verify as verify_model
from attrib.model.checkpoint import read_checkpoint
from attrib.model.devices import DeviceMap
from attrib.model.image_placeholder import has_chat_template
from attrib.model.vlm import VLM
from attrib.vocabulary import TemplateChoice


def load(
    name: str | Path,
    *,
    device: str = "auto",
    device_map: DeviceMap = None,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    verify: bool = True,
    processor: str | Path | None = None,
    template: TemplateChoice = "raw",
) -> VLM:
    """Load a model by embedded name, folder or Hugging Face id, in evaluation mode, frozen.

    Args:
        name: "tiny-llava", a folder written by `save_pretrained`, or an id on the Hugging Face hub.
        device: Device of the weights; "auto" takes a GPU if there is one.
        device_map: Spread the model instead: "auto" over all GPUs, then main memory, then the disk;
            or a map from its parts to devices, "cpu" or "disk".
        dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU and the checkpoint's
            dtype elsewhere.
        revision: Branch, tag or commit of a Hugging Face id.
        trust_remote_code: Run code that comes with the model; needs a pinned `revision`.
        verify: Require a complete checkpoint, and run the quick checks of `attrib.check`.
        processor: Embedded name, folder or id of the processor, where the model has none of its
            own, as some fine-tuned checkpoints.
        template: How prompts are given to the model: "raw", as they are; "chat", in its chat
            template; "auto", in its chat template if it has one.

    Raises:
        SetupError: There is no such model, it is not a decoder-only image-text-to-text model, its
            weights are pickles, it needs remote code, or a check fails.
    """
    name = str(name)  # as editors and manifests hold it
    given = None if processor is None else str(processor)
    loaded = read_checkpoint(
        name, device, dtype, revision, trust_remote_code, verify, device_map, given
    )
    if template == "auto":
        template = "chat" if has_chat_template(loaded[1]) else "raw"
    vlm = VLM(*loaded, name, template)
    if verify:
        verify_model(vlm)
    return vlm

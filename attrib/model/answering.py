"""One question about one picture, in one call."""

from collections.abc import Sequence

from attrib.model.pictures import Given
from attrib.model.vlm import VLM


def answer(
    vlm: VLM,
    image: Given | Sequence[Given] | None,
    prompt: str,
    *,
    max_new_tokens: int = 16,
) -> str:
    """The model's greedy answer to a question.

    Args:
        vlm: The model; its `template` decides how the prompt is written.
        image: A picture or its path, several in a list, or None.
        prompt: The question.
        max_new_tokens: The longest answer, in tokens.

    Raises:
        AttribError: The picture or the prompt cannot be used.
    """
    return vlm.generate(vlm.encode([image], [prompt]), max_new_tokens)[0]

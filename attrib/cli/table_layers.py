"""Where the adapters of a table write, if that is not given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLES = 200  # that layers are selected on
WORDS = 2  # of an answer of many words that are looked at: they are read at different depths


def selected(given: Mapping[str, Any], train_split: str | None, out: Path) -> str:
    """The layers that `attrib select` picks, on validation data; picked once.

    Args:
        given: Model and data, as options of `attrib select`.
        train_split: Where the edits of a folder are, which has no validation data.
        out: Folder of the selection.

    Returns:
        The file of the picked layers.
    """
    from attrib.cli.select import LAYERS, SelectOptions, select
    from attrib.pipeline.options import NAMED_SPLITS
    from attrib.pipeline.source import read_data
    from editors.training.config import has_phrases

    file = out / LAYERS
    if not file.exists():
        split = "validation" if given["data"] in NAMED_SPLITS else train_split
        options = SelectOptions(**given, split=split, limit=EXAMPLES, out=out)
        words = WORDS if has_phrases(read_data(options)) else 1
        select(options.model_copy(update={"words": words}))
    return str(file)

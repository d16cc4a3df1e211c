"""Options of `attrib table`, and the record of them in its folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import field_validator

from attrib.cli.evaluate import known_protocols
from attrib.cli.train import require_pairs
from attrib.errors import SetupError
from attrib.files import read_json, write_text
from attrib.pipeline.options import ModelOptions, option
from attrib.runs.manifest import diff
from attrib.vocabulary import GateName

MANIFEST = "table.json"
GROWING = (
    "out",
    "editors",
    "backbones",
    "data",
    "seeds",
    "device",
    "device_map",
    "model",
    "dry_run",
)  # may differ later


class TableOptions(ModelOptions):
    """Options of `attrib table`; `--model` of the other commands is `--backbones` here."""

    model: Annotated[str, typer.Option(hidden=True)] = ""
    backbones: str = option(
        "tiny-llava", "Models, comma-separated: embedded names, Hugging Face ids, folders."
    )
    data: str = option(
        "scenes-vqa",
        "Datasets, comma-separated: scenes-vqa, scenes-captions, folders of benchmarks, or your "
        "own tables.",
    )
    editors: str = option("all", "Editors, comma-separated, or all.")
    layers: str | None = option(
        None,
        "Where adapters write, such as 'text:1 visual:1'.",
        shown="as `attrib select` chooses, with two words of long answers",
    )
    gate: GateName = option(
        "learned",
        "Gate behind which every editor is scored, besides as it is (ungated; serac with its own "
        "classifier, lte with its retrieval); fitted once per model, data and seed. none: as they "
        "are alone.",
    )
    gate_layer: int = option(1, "Layer that the gate reads.", ge=0)
    train_split: str | None = option(None, "Part to train on.", shown="train")
    test_split: str | None = option(None, "Part to score on.", shown="test")
    image_root: Path | None = option(None, "Folder of the images.")
    columns: str | None = option(
        None, "Which columns of tables hold what, such as image=file,prompt=question."
    )
    train_limit: int | None = option(None, "Edits to train on.", shown="all", ge=1)
    limit: int = option(500, "Edits to score.", ge=1)
    seeds: int = option(
        1,
        "Trainings per editor, each with its own gate, and on scenes with training data of its "
        "own.",
        ge=1,
    )
    steps: int | None = option(None, "Optimizer steps of each training.", shown="the preset's")
    set: list[str] = option(
        [],
        "An option of every editor that has it, as name=value, such as end_token=true; repeatable.",
        shown="the preset's",
    )
    _pairs = field_validator("set")(require_pairs)
    protocols: str = option("paper,exact,generate", "When an answer counts as right.")
    _known_protocols = field_validator("protocols", mode="before")(known_protocols)
    fluency: int = option(
        0,
        "Tokens that are generated before and after each edit to measure fluency; 0 for none.",
        ge=0,
    )
    out: Path = option(Path("runs/table"), "Folder of editors, scores and tables.")
    dry_run: bool = option(False, "Print the plan and write nothing.", flags=("--dry-run",))


def agreed(options: TableOptions) -> TableOptions:
    """The options as the folder records them: the same protocols may be written in another order.

    Raises:
        SetupError: The folder was made with other settings.
    """
    path, now = options.out / MANIFEST, _recorded(options)
    if not path.exists():
        return options
    # An earlier version did not know every setting of today.
    there = {**_recorded(TableOptions()), **read_json(path)}
    try:
        if known_protocols(there["protocols"]) == now["protocols"]:
            now["protocols"] = there["protocols"]  # the scores there are recorded with this order
    except ValueError:  # earlier versions recorded a misspelt one, and stopped before any score
        there["protocols"] = now["protocols"]
    if different := diff(there, now):
        raise SetupError(
            f"{options.out} was made with other settings: {'; '.join(different)}; give another "
            "--out, or the settings that are there"
        )
    return options.model_copy(update={"protocols": now["protocols"]})


def write_settings(options: TableOptions) -> None:
    """Write the settings of the folder's editors."""
    write_text(options.out / MANIFEST, json.dumps(_recorded(options), indent=1))


def _recorded(options: TableOptions) -> dict[str, Any]:
    return {k: v for k, v in options.model_dump(mode="json").items() if k not in GROWING}

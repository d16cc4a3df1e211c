"""Options of analyses and of where their samples come from: flags, YAML keys and keyword arguments.

A field's description is its help text; `option` adds what the command line needs besides.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from attrib.pipeline.parsing import parse_layers
from attrib.vocabulary import DEFAULT_MODEL, Dtype, TemplateChoice

OF_DATA = frozenset({"data", "split", "image_root", "columns", "limit", "answer_prefix"})
NAMED_SPLITS = {"scenes-vqa": "test", "scenes-captions": "test"}
# A single path, as a YAML file may have it, is a list of one.
_as_list = BeforeValidator(lambda given: [given] if isinstance(given, str | Path) else given)
Photos = Annotated[list[Path] | None, _as_list]
PANEL = "Analysis"  # heading in --help of the options that one analysis has


def option(
    default: Any,
    description: str,
    *,
    panel: str | None = None,
    shown: str | bool = True,
    flags: tuple[str, ...] = (),
    alias: str | None = None,
    **constraints: Any,
) -> Any:
    """A pydantic field that is an option of a command as well.

    Args:
        default: its value where it is not given.
        description: the help text.
        panel: heading under which --help lists it.
        shown: the default as --help shows it, where the value itself says too little.
        flags: its flags, by default "--name".
        alias: a former name, still accepted in YAML files and as a flag.
        constraints: of pydantic, such as `ge=1`.
    """
    extra = {"panel": panel, "shown": shown, "flags": list(flags), "alias": alias}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Options(BaseModel):
    """Options that are checked once; unknown names are errors.

    Attributes:
        free: options that change no number of the tables; `batch_size` changes them by rounding,
            which half precision shows. A run may be continued with others, and the default
            folder does not depend on them. Subclasses add their own.
        refused: options of a base class that a command does not have -> why. Help does not show
            them; given, they are refused with that reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    free: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        former = cls.former_names()
        return {former.get(name, name): value for name, value in values.items()}

    @classmethod
    def former_names(cls) -> dict[str, str]:
        """Former name -> present name of the options that were renamed."""
        extras: dict[str, Any] = {n: f.json_schema_extra or {} for n, f in cls.model_fields.items()}
        return {extra["alias"]: n for n, extra in extras.items() if extra.get("alias")}

    @classmethod
    def all_free(cls) -> frozenset[str]:
        """`free` of this class and of those that it is derived from."""
        return frozenset().union(*(vars(base).get("free", ()) for base in cls.__mro__))


class ModelOptions(Options):
    """Which model, and where it runs."""

    free = frozenset({"device", "device_map"})

    model: str = option(DEFAULT_MODEL, "Embedded name, Hugging Face id, or folder.", panel="Model")
    revision: str | None = option(None, "Commit, tag or branch of a hub model.", panel="Model")
    dtype: Dtype = option(
        "auto", "auto: float32 on a CPU, the checkpoint's on a GPU.", panel="Model"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", panel="Model")
    device_map: str | None = option(
        None,
        'auto: over all GPUs, main memory and disk; or JSON, such as {"model": 0}.',
        panel="Model",
        shown="one device",
    )
    trust_remote_code: bool = option(
        False, "Run the model repository's code.", panel="Model", flags=("--trust-remote-code",)
    )
    template: TemplateChoice = option(
        "raw",
        "raw: prompts as they are; chat: in the model's chat template; auto: that if it has one.",
        panel="Model",
    )
    processor: str | None = option(
        None,
        "Embedded name, id or folder of the processor, if it is in another place.",
        panel="Model",
        shown="the model's",
    )

    @field_validator("device_map", mode="before")
    @classmethod
    def _map_as_text(cls, given: Any) -> Any:
        return json.dumps(given) if isinstance(given, dict) else given


class MeasureOptions(Options):
    """Options that every analysis has, whatever its samples are."""

    free = frozenset({"batch_size"})

    batch_size: int | None = option(
        None,
        "Samples per pass. Changes numbers in half precision.",
        shown="what is efficient and fits in memory",
        ge=1,
    )
    seed: int = option(0, "Seed of noise and of bootstrap intervals.")


class SourceOptions(Options):
    """How the rows of data are read, whatever data it is."""

    image_root: Path | None = option(
        None,
        "Folder of the images.",
        panel="Data",
        shown="DATA/images; of a table, where it lies",
    )
    columns: str | None = option(
        None,
        "Which columns of a table hold what, such as image=file,prompt=question.",
        panel="Data",
        shown="by their names",
    )
    limit: int | None = option(None, "Read the first rows only.", panel="Data", shown="all", ge=1)

    @field_validator("columns", mode="before")
    @classmethod
    def _one_spelling(cls, given: Any) -> str | None:
        from attrib.data.columns import columns_text

        return columns_text(given)


class DataOptions(SourceOptions):
    """Where samples come from."""

    data: str = option(
        "scenes-vqa",
        "scenes-vqa, scenes-captions, a folder of a benchmark (E-VQA, E-IC, VLKEB, ...), or a "
        "table of your own: CSV, TSV, JSONL, JSON, Parquet, a saved dataset.",
        panel="Data",
    )


class AnalysisOptions(MeasureOptions, DataOptions, ModelOptions):
    """Options that all analyses share on the command line: the model, the samples, the folder."""

    free = frozenset({"out", "max_failures", "dry_run"})

    split: str | None = option(
        None,
        "test for scenes; vqa-train, caption-eval, vlkeb-onehop, ... for a folder; a value of the "
        "column split for a table.",
        panel="Data",
        shown="test; a whole table",
    )
    answer_prefix: int | None = option(
        None,
        "Feed this many words of the answer; analyse the next one.",
        panel="Data",
        shown="the words that most answers share, such as a caption's article",
        alias="lead",
        ge=0,
    )
    image: Photos = option(
        None, "A photo instead of data; again for another one in the prompt.", panel="One photo"
    )
    prompt: str | None = option(None, "The question about it.", panel="One photo")
    target: str | None = option(None, "Its correct answer.", panel="One photo")
    max_failures: int | None = option(
        None, "Exit with 1 if more rows than this are quarantined.", shown="no limit", ge=0
    )
    out: Path | None = option(
        None,
        "Folder of the results; a run that exists there is continued.",
        shown="runs/COMMAND-MODEL-DATA-HASH",
    )
    dry_run: bool = option(False, "Print the plan and write nothing.", flags=("--dry-run",))

    @model_validator(mode="after")
    def _one_source(self) -> "AnalysisOptions":
        if (self.image or self.target) and not self.prompt:
            raise ValueError("--image and --target need a --prompt, such as 'The animal is a'")
        of_data = OF_DATA & self.model_fields_set
        if self.prompt and of_data and "prompt" not in self.refused:  # the command says why
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(of_data))
            raise ValueError(f"--prompt asks about one photo: leave out {names}, or --prompt")
        return self


class LayerOptions(MeasureOptions):
    """Options of analyses that can be limited to some of the layers."""

    layers: str | None = option(None, "Such as 0,4,8-11.", panel=PANEL, shown="all")

    @field_validator("layers", mode="before")
    @classmethod
    def _normalise_layers(cls, given: Any) -> str | None:
        # One spelling for the same layers: the value identifies the run.
        return None if given is None else ",".join(map(str, parse_layers(given)))

    def layer_list(self) -> list[int] | None:
        """The layers in ascending order; None for all."""
        return None if self.layers is None else parse_layers(self.layers)


def explain(error: ValidationError, options: type[BaseModel]) -> str:
    """The first problem of a validation in one line, with the known names for an unknown one."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    unknown = first["type"] == "extra_forbidden"
    known = f"; known are {', '.join(options.model_fields)}" if unknown else ""
    message = first["msg"].removeprefix("Value error, ")  # the prefix is pydantic's
    return f"{name}: {message}{known}" if name else f"{message}{known}"

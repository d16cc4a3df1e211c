"""What the commands can be told, and what they take where nothing is said."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typer import Option

EMBEDDED = "tiny-llava"
PANEL = "Analysis"  # where --help shows what one analysis alone can be told
NAMED_SPLITS = {"scenes-vqa": "test", "scenes-captions": "test"}


class ModelOptions(BaseModel):
    """Which model, and where it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[
        str, Option(help="Embedded name, Hugging Face id, or folder.", rich_help_panel="Model")
    ] = EMBEDDED
    revision: Annotated[
        str | None, Option(help="Commit, tag or branch of a hub model.", rich_help_panel="Model")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help="auto: float32 on a CPU, the checkpoint's on a GPU.", rich_help_panel="Model"),
    ] = "auto"
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel="Model")] = (
        "auto"
    )
    trust_remote_code: Annotated[
        bool,
        Option("--trust-remote-code", help="Run code from the model's repository.",
               rich_help_panel="Model"),
    ] = False  # fmt: skip


class DemoOptions(ModelOptions):
    """Options of the first report."""

    data: Annotated[Literal["scenes-vqa", "scenes-captions"], Option(help="Embedded data.")] = (
        "scenes-vqa"
    )
    split: Annotated[Literal["train", "validation", "test"], Option(help="Part of it.")] = "test"
    limit: Annotated[int, Option(help="Number of samples.", min=1), Field(ge=1)] = 64
    batch_size: Annotated[int, Option(help="Samples per pass.", min=1), Field(ge=1)] = 16
    seed: Annotated[int, Option(help="Seed of the bootstrap intervals.")] = 0
    out: Annotated[Path, Option(help="Folder of the report.")] = Path("demo")


class AnalysisOptions(ModelOptions):
    """Options that all analyses share.

    Attributes:
        free: options that change no number of the tables. A run may be resumed with others, and
            they do not tell results apart; a subclass adds its own.
    """

    free: ClassVar[frozenset[str]] = frozenset(
        {"out", "batch_size", "device", "max_failures", "dry_run"}
    )

    data: Annotated[
        str,
        Option(help="scenes-vqa, scenes-captions, or a folder in the E-VQA / E-IC layout.",
               rich_help_panel="Data"),
    ] = "scenes-vqa"  # fmt: skip
    split: Annotated[
        str | None,
        Option(help="test for scenes; vqa-train, vqa-eval, caption-train or caption-eval for a "
               "folder.", show_default="test", rich_help_panel="Data"),
    ] = None  # fmt: skip
    image_root: Annotated[
        Path | None,
        Option(help="Folder of a folder's images.", show_default="DATA/images",
               rich_help_panel="Data"),
    ] = None  # fmt: skip
    limit: Annotated[
        int | None,
        Option(help="Read the first rows only.", show_default="all", min=1,
               rich_help_panel="Data"),
        Field(ge=1),
    ] = None  # fmt: skip
    lead: Annotated[
        int | None,
        Option(help="Words of the answer that go behind the prompt, so that the next one is looked "
               "at.", show_default="those that most answers share, as captions do their article",
               min=0, rich_help_panel="Data"),
        Field(ge=0),
    ] = None  # fmt: skip
    image: Annotated[
        Path | None, Option(help="One photo instead of data.", rich_help_panel="One photo")
    ] = None
    prompt: Annotated[
        str | None, Option(help="What to ask about it.", rich_help_panel="One photo")
    ] = None
    target: Annotated[
        str | None, Option(help="Its right answer, for --key gold.", rich_help_panel="One photo")
    ] = None
    batch_size: Annotated[
        int, Option(help="Samples per pass; a pass takes 16 at most.", min=1), Field(ge=1)
    ] = 8
    seed: Annotated[int, Option(help="Seed of the bootstrap intervals.")] = 0
    max_failures: Annotated[
        int | None,
        Option(help="Exit with 1 if more rows than this are quarantined.",
               show_default="no limit", min=0),
        Field(ge=0),
    ] = None  # fmt: skip
    out: Annotated[
        Path | None,
        Option(help="Folder of the results; what is there already is not computed again.",
               show_default="runs/COMMAND-MODEL-DATA-HASH"),
    ] = None  # fmt: skip
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be done, and write nothing.")
    ] = False

    @model_validator(mode="after")
    def _one_source(self) -> "AnalysisOptions":
        if (self.image or self.target) and not self.prompt:
            raise ValueError("--image and --target need a --prompt, such as 'The animal is a'")
        return self


class ContributionOptions(AnalysisOptions):
    """Options of `attrib contributions`."""

    key: Annotated[
        str,
        Option(help="Whose logit is looked at: argmax (what the model says), gold (the target), "
               "wrong (an unrelated answer: the control) or token:WORD.",
               rich_help_panel=PANEL),
    ] = "argmax"  # fmt: skip
    norm: Annotated[
        Literal["none", "final", "frozen"],
        Option(help="none: the paper; final: the authors' program; frozen: shares that sum to the "
               "logit.", rich_help_panel=PANEL),
    ] = "none"  # fmt: skip


class AttentionOptions(AnalysisOptions):
    """Options of `attrib attention`."""

"""`attrib train`: train an editor, or save its options if there is nothing to train."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from attrib.cli.benchmark_options import BenchmarkOptions
from attrib.cli.command import ExitCode, next_command
from attrib.cli.outputs import log
from attrib.errors import AttribError
from attrib.pipeline.options import (
    NAMED_SPLITS,
    DataOptions,
    ModelOptions,
    option,
)
from attrib.pipeline.source import data_flags, load_model, reading, require_targets
from attrib.vocabulary import GateName

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM

TRAINING = "Training and editor (default: the preset's)"
PICTURES = ("image", "image_rephrase", "m_loc")  # what training and evaluation read
WRITTEN = re.compile(r"(text|visual):(\d+(?:,\d+)*)")


def require_pairs(given: list[str]) -> list[str]:
    """The words of `--set`; ValueError if one is not name=value."""
    if wrong := [one for one in given if "=" not in one]:
        raise ValueError(f"expected name=value, got {wrong[0]!r}")
    return given


class TrainOptions(BenchmarkOptions, DataOptions, ModelOptions):
    """Options of `attrib train`."""

    editor: str = option("dualedit", "Which editor; a wrong name lists them.")
    layers: str | None = option(
        None,
        "Where to edit: the layers.json of `attrib select`, or such as 'text:4 visual:2'.",
        shown="the baselines: where their papers edit",
    )
    split: str | None = option(
        None,
        "train; vqa-train, caption-train, vlkeb-train, ... for a folder; a value of the column "
        "split for a table.",
        panel="Data",
        shown="train; a whole table",
    )
    preset: str = option(
        "auto",
        "A named configuration, such as dualedit-paper; a wrong name lists them, docs/editors.md "
        "describes them. auto: tuned-small for small models (tuned-small-phrases for answers of "
        "many words, tuned-small-wide from a width of 512 on), for others that of a program.",
    )
    gate: GateName | None = option(
        None,
        "What decides which inputs an edit applies to; sequence_last reads the answer.",
        shown="learned for dualedit and visedit, none for the others",
    )
    steps: int | None = option(None, "Optimizer steps.", panel=TRAINING)
    batch_size: int | None = option(None, "Edits per step.", panel=TRAINING)
    learning_rate: float | None = option(None, "Peak learning rate.", panel=TRAINING)
    seed: int = option(0, "Seed of the weights and of the order of edits.")
    tensorboard: bool = option(
        False, "Write the curves for TensorBoard into --out.", flags=("--tensorboard",)
    )
    set: list[str] = option(
        [],
        "Any other option of the editor, as name=value; repeatable. A wrong name lists all.",
        panel=TRAINING,
        shown=False,
    )
    _pairs = field_validator("set")(require_pairs)
    out: Path | None = option(
        None,
        "Folder of checkpoints and of the editor; the same command resumes there.",
        shown="runs/train-EDITOR-MODEL-DATA",
    )
    dry_run: bool = option(False, "Print the plan and write nothing.", flags=("--dry-run",))


def train(options: TrainOptions) -> int:
    """Train an editor at chosen layers; after an interruption the same command resumes."""
    from attrib.runs import Rank
    from editors import EDITORS

    if options.editor not in EDITORS:
        known = ", ".join(EDITORS)
        raise AttribError(f"--editor: there is no {options.editor!r}; there are {known}")
    kind: Any = EDITORS[options.editor]
    out = options.out or default_out("train", options)
    rank = Rank.from_environment()
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    own = options.layers is None and not kind.needs_layers
    layers = None if own else layers_of(options.layers, vlm)
    data = training_data(options)
    if options.dry_run:
        from attrib.cli.plans import training_plan

        given = editor_options(options)
        given |= {"gate": options.gate} if options.gate and kind.takes_gate else {}
        config = kind.config_class.from_preset(vlm, options.preset, data, **given)
        print("\n".join(training_plan(kind, layers_text(layers), config, vlm, data, out)))
        return ExitCode.DONE
    if rank.number == 0:
        what = f"{options.editor} of {vlm.name}{layers_text(layers)}"
        log(f"train: {what}, {len(data)} edits, into {out}")
        if data.quarantined:
            log(data.summary())
    editor = kind.train(
        vlm,
        data,
        layers=layers,
        out=out,
        preset=options.preset,
        gate=options.gate,
        tensorboard=options.tensorboard,
        **editor_options(options),
    )
    if rank.number > 0:
        return ExitCode.DONE
    print(_done(editor))
    print(f"  {out}\nnext: {_evaluation(options, out)}")
    return ExitCode.DONE


def _evaluation(options: TrainOptions, out: Path) -> str:
    """The command line that evaluates the editor on the data it was trained for."""
    from attrib.data.own import has_split
    from attrib.data.tables import is_table

    split = options.split
    if is_table(options.data, split):
        path = Path(options.data)
        split = "test" if split and has_split(path, "test", options.columns) else split
    elif split is not None and split.endswith("-train"):
        split = f"{split.removesuffix('-train')}-eval"
    flags = data_flags(options, None if options.data in NAMED_SPLITS else split)
    return next_command("evaluate", options, "--editor", str(out), *flags)


def layers_text(layers: Mapping[str, list[int]] | None) -> str:
    """Where an editor writes, such as " at text 1; visual 1"; empty where that is its own."""
    if layers is None:
        return ""
    return " at " + "; ".join(f"{m} {', '.join(map(str, some))}" for m, some in layers.items())


def _done(editor: Any) -> str:
    """The result, in one line."""
    trained: Mapping[str, Any] = editor.trained or {}
    seconds = trained.get("seconds", 0.0)
    if "training" not in trained:
        return f"{editor.name} has nothing to train; prepared in {seconds:.0f} s"
    return (
        f"trained {trained['training']['steps']} steps in {seconds:.0f} s; best weights: step "
        f"{trained['best_step']}, validation loss {trained['best_loss']:.3f}"
    )


def layers_of(given: str | None, vlm: "VLM") -> Mapping[str, list[int]]:
    """Layers by modality, from a file of `attrib select` or from text such as "text:4 visual:2".

    Raises:
        AttribError: `given` is None, or neither; a part of the text is not such as "text:4,5".
        SetupError: The file belongs to another model.
    """
    if given is None:
        raise AttribError(
            "--layers: give the layers.json of `attrib select`, or such as 'text:4 visual:2'"
        )
    if not Path(given).is_file():
        return written_layers(given)
    from attrib.selection import LayerReport

    report = LayerReport.load(given)
    report.check(vlm)
    return report.layers


def written_layers(given: str) -> dict[str, list[int]]:
    """Layers by modality from text such as "text:4 visual:2,3".

    Raises:
        AttribError: A part of it is something else.
    """
    layers: dict[str, list[int]] = {}
    for part in given.split() or [given]:
        if (found := WRITTEN.fullmatch(part)) is None:
            where = "" if part == given else f"{part!r} in "
            raise AttribError(
                f"--layers: {where}{given!r} is neither a file nor such as 'text:4 visual:2,3'"
            )
        layers.setdefault(found[1], []).extend(map(int, found[2].split(",")))
    return layers


def training_data(options: TrainOptions) -> "EditData":
    """The edits to train on, with all their pictures."""
    from attrib import data
    from attrib.data.tables import is_table

    known = {"scenes-vqa": "train", "scenes-captions": "train"}
    split = options.split or known.get(options.data)
    if split is None and not is_table(options.data):
        raise AttribError(
            f"--split: which part of {options.data}? such as vqa-train, caption-train, vlkeb-train"
        )
    more: Any = {"style": options.style, "disjoint": options.disjoint, "need": PICTURES}
    return require_targets(data.load(options.data, split, **reading(options), **more))


def editor_options(options: TrainOptions) -> dict[str, Any]:
    """The options of the editor's configuration that were given, by name."""
    from editors.training.config import TrainingConfig

    named = {name: getattr(options, name, None) for name in TrainingConfig.model_fields}
    given = {name: value for name, value in named.items() if value is not None}
    return given | named_values(options.set)


def named_values(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of name=value, by name."""
    return {name: _value(text) for name, text in (one.split("=", 1) for one in pairs)}


def _value(text: str) -> Any:
    """A number, true, false, a list as JSON; anything else is a word."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def default_out(command: str, options: TrainOptions) -> Path:
    """The default folder of a training or grid: a name below runs/, whatever the paths of data."""
    name = f"{command}-{options.editor}-{options.model}-{options.data}"
    return Path("runs") / re.sub(r"[^A-Za-z0-9_-]+", "-", name)

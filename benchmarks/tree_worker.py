"""Trains and evaluates with the tree that is on the path, as told line by line; see `speed`.

Run as a file, so that an older tree than this one can be measured: only names that both have are
used, and those that differ are looked up. Times are CPU seconds of this process.
"""

import json
import sys
import time
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

DATA = "scenes-vqa"


def first_of(*places: str) -> Any:
    """The first of some modules that the tree has, by "module:name" a name in it."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            found = import_module(module)
            return getattr(found, name) if name else found
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {', '.join(places)}")


def train_dualedit(vlm: Any, out: str, text: int, visual: int, edits: int, **options: Any) -> Any:
    """A DualEdit, trained as far as the options say."""
    attrib, kinds = import_module("attrib"), import_module("editors").EDITORS
    samples = attrib.data.load(DATA, split="train", limit=edits)
    layers = {"text": [text], "visual": [visual]}
    return kinds["dualedit"].train(vlm, samples, layers=layers, out=out, **options)


def timed_training(vlm: Any, out: str, **given: Any) -> dict[str, Any]:
    """Seconds and loss of each step where the prefix states do not fit into memory."""
    dataset = first_of("editors.training.dataset", "editors.passed_anew")
    trainer = first_of("editors.training.trainer:Trainer", "editors.training:Run")
    objective = first_of("editors.methods.adapter_objective:AdapterObjective",
                         "editors.objective:AdapterObjective")  # fmt: skip
    seconds: list[float] = []
    losses: list[float] = []
    step, loss_of = trainer.step, objective.losses

    def timed_step(self: Any) -> None:
        began = time.process_time()
        step(self)
        seconds.append(time.process_time() - began)

    def kept_losses(self: Any, *args: Any) -> Any:
        terms = loss_of(self, *args)
        losses.append(sum(value.item() for value in terms.values()))
        return terms

    before = dataset.available_bytes
    dataset.available_bytes = lambda _device: 0
    trainer.step, objective.losses = timed_step, kept_losses
    began = time.process_time()
    try:
        train_dualedit(vlm, out, gate="none", validate_every=10**9, save_every=10**9, **given)
    finally:
        dataset.available_bytes = before
        trainer.step, objective.losses = step, loss_of
    other = time.process_time() - began - sum(seconds)
    return {"seconds": seconds, "losses": losses, "other seconds": other}


def protocols_of() -> dict[str, str]:
    """The protocols by what they are called here: one was called "generate" at first."""
    known = first_of("editors.evaluation.protocols:PROTOCOLS", "editors.protocols:PROTOCOLS")
    prefix = "generate-prefix"
    generated = prefix if prefix in known else "generate"
    return {"paper": "paper", "exact": "exact", generated: prefix}


def timed_evaluation(vlm: Any, editor: Any, edits: int, reference: Any) -> dict[str, Any]:
    """Seconds and all scores of the evaluation of some edits."""
    evaluate = first_of("editors.evaluation:evaluate")
    samples = list(import_module("attrib").data.load(DATA, split="test", limit=edits))
    name = next(n for n in ("reference", "unedited") if n in signature(evaluate).parameters)
    shared = {} if reference is None else {name: reference}
    protocols = protocols_of()
    began = time.process_time()
    frame = evaluate(vlm, editor, samples, tuple(protocols), **shared).frame
    seconds = time.process_time() - began
    frame = frame[frame["protocol"] != "cost"].replace({"protocol": protocols})
    rows = frame[["example", "editor", "protocol", "metric", "value"]]
    scores = {"|".join(row[:4]): row[4] for row in rows.itertuples(index=False, name=None)}
    return {"seconds": seconds, "scores": scores}


def main() -> None:
    """Answer a line of JSON for each line of JSON."""
    attrib, torch = import_module("attrib"), import_module("torch")
    logging = import_module("logging")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    editors: dict[str, Any] = {}
    references: dict[str, Any] = {}
    kinds = import_module("editors").EDITORS
    for line in sys.stdin:
        told = json.loads(line)
        do, name = told.pop("do"), told.pop("model")
        vlm = models.setdefault(name, None) or attrib.load(name)
        models[name] = vlm
        if do == "train":
            answer = timed_training(vlm, **told)
        elif do == "make":
            answer = {}
            editors["dualedit"] = train_dualedit(vlm, **told)
        else:
            kind, folder, edits = told["editor"], told["folder"], told["edits"]
            if kind not in editors:
                load = getattr(import_module("editors"), "load_editor", None)
                is_there = Path(folder).exists()
                editors[kind] = (
                    load(folder, vlm) if load and is_there
                    else kinds[kind].load(folder, vlm) if is_there
                    else kinds[kind].train(vlm, [], out=folder)
                )  # fmt: skip
            if told["shared"]:
                make = first_of(
                    "editors.evaluation.reference_model:ReferenceModel", "editors.unedited:Unedited"
                )
                references[name] = references.get(name) or make(vlm, tuple(protocols_of()))
            answer = timed_evaluation(
                vlm, editors[kind], edits, references[name] if told["shared"] else None
            )
        sys.stdout.write("@" + json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

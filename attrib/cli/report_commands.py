"""The commands that a report on layers ends with: the same again, and what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrib.cli.command import invocation
from attrib.pipeline.options import NAMED_SPLITS

if TYPE_CHECKING:
    from attrib.report.layer_study import LayerStudy


def commands_of(
    study: "LayerStudy", out: Path, folders: Sequence[Path], *, judged: bool
) -> dict[str, list[str]]:
    """By purpose, what to type.

    Args:
        study: what is reported.
        out: the folder of the report, with its layers.json.
        folders: that the report was read from.
        judged: whether a grid was given.
    """
    made = [str(run.result.provenance.get("invocation", "")) for run in study.runs]
    again = [line for line in dict.fromkeys([*made, invocation()]) if line]
    on, scored = _on(study, "train"), _on(study, "eval")
    editor = out / "editor"
    commands = {
        "The same again": again,
        "An editor at these layers, trained and scored": [
            shlex.join(["attrib", "train", *on, "--layers", str(out / "layers.json"), "--out",
                        str(editor)]),
            shlex.join(["attrib", "evaluate", *scored, "--editor", str(editor)]),
        ],
    }  # fmt: skip
    if not judged and (pairs := _pairs(study)):
        given = [part for folder in folders for part in ("--from", str(folder))]
        grid = str(out / "grid")
        commands["What the choice costs: editors at the layers of each rule"] = [
            shlex.join(["attrib", "grid", *on, "--text", "none", "--visual", "none", "--pairs",
                        pairs, *_tested_on(study), "--out", grid]),
            shlex.join(["attrib", "report", *given, "--grid", f"{grid}/scores.csv", "--out",
                        str(out)]),
        ]  # fmt: skip
    return commands


def _tested_on(study: "LayerStudy") -> list[str]:
    """Where a grid's cells are scored, where the default is not there."""
    scored = _on(study, "eval")
    return ["--test-split", scored[scored.index("--split") + 1]] if "--split" in scored else []


def _on(study: "LayerStudy", part: str) -> list[str]:
    """The options that name the model and the data; of a folder the "train" or "eval" part."""
    given = study.runs[0].options
    on = ["--model", str(given.get("model") or study.report.model.get("name"))]
    on += ["--revision", str(given["revision"])] if given.get("revision") else []
    on += ["--dtype", str(given["dtype"])] if given.get("dtype", "auto") != "auto" else []
    on += ["--trust-remote-code"] if given.get("trust_remote_code") else []
    data = str(given.get("data") or study.report.provenance.get("data", {}).get("name"))
    on += ["--data", data]
    if data not in NAMED_SPLITS:
        kind = "caption" if str(given.get("split") or "").startswith("caption") else "vqa"
        on += ["--split", f"{kind}-{part}"]
    return on + (["--image-root", str(given["image_root"])] if given.get("image_root") else [])


def _pairs(study: "LayerStudy") -> str:
    """The pairs of layers that the rules and the fixed choices pick, for `attrib grid`."""
    from attrib.selection import CONSENSUS_RULES, fixed_picks, picks_of

    picks = picks_of(study.report)
    named = {rule: picks[rule] for rule in (study.report.rule, *CONSENSUS_RULES) if rule in picks}
    found = {**named, **fixed_picks(study.report.num_layers)} if named else {}
    return "+".join(dict.fromkeys(f"{text}x{visual}" for text, visual in found.values()))

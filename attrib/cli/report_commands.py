"""The commands at the end of a layer report: to reproduce it, and to continue."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrib.cli.command import invocation
from attrib.pipeline.options import NAMED_SPLITS

if TYPE_CHECKING:
    from attrib.report.layer_study import LayerStudy


def commands_of(
    study: "LayerStudy", out: Path, folders: Sequence[Path], *, with_grid: bool
) -> dict[str, list[str]]:
    """Command lines by purpose.

    Args:
        study: the content of the report.
        out: the folder of the report, with its layers.json.
        folders: that the report was read from.
        with_grid: whether a grid of trained editors was given.
    """
    made = [str(run.result.provenance.get("invocation", "")) for run in study.runs]
    again = [line for line in dict.fromkeys([*made, invocation()]) if line]
    on, scored = _on(study, "train"), _on(study, "eval")
    editor = out / "editor"
    commands = {
        "Reproduce": again,
        "Train and evaluate an editor at these layers": [
            shlex.join(["attrib", "train", *on, "--layers", str(out / "layers.json"), "--out",
                        str(editor)]),
            shlex.join(["attrib", "evaluate", *scored, "--editor", str(editor)]),
        ],
    }  # fmt: skip
    if not with_grid and (pairs := _pairs(study)):
        given = [part for folder in folders for part in ("--from", str(folder))]
        grid = str(out / "grid")
        commands["Compute the regret: editors at the layers of each rule"] = [
            shlex.join(["attrib", "grid", *on, "--text", "none", "--visual", "none", "--pairs",
                        pairs, *_tested_on(study), "--out", grid]),
            shlex.join(["attrib", "report", *given, "--grid", f"{grid}/scores.csv", "--out",
                        str(out)]),
        ]  # fmt: skip
    return commands


def _tested_on(study: "LayerStudy") -> list[str]:
    """The split on which a grid's cells are scored, if it is not the default."""
    scored = _on(study, "eval")
    return ["--test-split", scored[scored.index("--split") + 1]] if "--split" in scored else []


def _on(study: "LayerStudy", part: str) -> list[str]:
    """Options that name the model and the data; `part` is "train" or "eval" of a folder."""
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
    """The layers of the rules and of the fixed choices, as `attrib grid --pairs` takes them."""
    from attrib.selection import CONSENSUS_RULES, fixed_picks, picks_of

    picks = picks_of(study.report)
    named = {rule: picks[rule] for rule in (study.report.rule, *CONSENSUS_RULES) if rule in picks}
    found = {**named, **fixed_picks(study.report.num_layers)} if named else {}
    return "+".join(dict.fromkeys(f"{text}x{visual}" for text, visual in found.values()))

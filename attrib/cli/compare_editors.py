"""`attrib compare` of evaluations: editors side by side, and paired differences between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrib.cli.outputs import log
from attrib.errors import AttribError
from attrib.files import write_text
from attrib.vocabulary import SCORES_FILE

if TYPE_CHECKING:
    import pandas as pd

    from attrib.results import Result

SHOWN = 12
HEAD = ["editor", "gate", "other", "other_gate", "protocol", "difference", "low", "high", "p_holm"]


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds the scores of `attrib evaluate`."""
    return (folder / SCORES_FILE).is_file()


def compare_evaluations(
    folders: Sequence[Path], out: Path, resamples: int, seed: int
) -> list[Path]:
    """Print and write the scores of evaluations, and their differences on shared edits.

    Folders with one editor behind one gate are its seeds.

    Returns:
        The files: `summary.csv`, `summary.md` and `costs.csv` as of one evaluation, and
        `differences.csv` (`editors.evaluation.paired.differences`).

    Raises:
        AttribError: A folder holds no scores, or they are of different models or data.
    """
    from attrib.results import Result
    from editors.evaluation.paired import differences
    from editors.evaluation.tables import save_tables
    from editors.evaluation.terminal_tables import terminal_tables

    if missing := [folder for folder in folders if not is_evaluation(folder)]:
        raise AttribError(
            f"{missing[0]}: no {SCORES_FILE} of `attrib evaluate` there, as in the other folders; "
            "evaluations are compared with evaluations"
        )
    results = [Result.load(folder / SCORES_FILE) for folder in folders]
    _tell_seeds(results, folders)
    files = save_tables(results, out)
    print(terminal_tables(results), end="\n\n")
    found = differences(results, resamples=resamples, seed=seed)
    if len(found):
        print(_averages(found))
    return [*files, write_text(out / "differences.csv", found.to_csv(index=False))]


def _tell_seeds(results: "Sequence[Result]", folders: Sequence[Path]) -> None:
    """Say which folders count as seeds of one editor, since they may be meant as two editors."""
    from editors.evaluation.scoring import UNEDITED

    held: dict[tuple[str, str], list[Path]] = {}
    for result, folder in zip(results, folders, strict=True):
        names = result.frame[["editor", "gate"]].drop_duplicates()
        for editor, gate in names.itertuples(index=False, name=None):
            if editor != UNEDITED:
                held.setdefault((editor, gate), []).append(folder)
    for (editor, gate), some in held.items():
        if len(some) > 1:
            log(
                f"compare: {editor}, {gate}, is in {' and '.join(map(str, some))}: taken as seeds "
                "of one editor; two editors need names, attrib evaluate --label"
            )


def _averages(found: "pd.DataFrame") -> str:
    """The first rows of the differences in the average of the five scores, in points."""
    shown = found.loc[found["metric"] == "avg", HEAD]
    text = shown.head(SHOWN).to_string(index=False, float_format="{:.2f}".format)
    more = f"\n... {len(shown)} rows in the file" if len(shown) > SHOWN else ""
    return (
        f"Avg, the first minus the other, in points, with 95 % intervals; p by Holm over "
        f"{len(found)} comparisons:\n{text}{more}"
    )

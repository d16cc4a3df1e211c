"""Evaluation of an editor: each sample's edit by itself, by all protocols, on a restored model.

    scores = evaluate(vlm, editor, samples, protocols=("paper", "exact", "generate"))
    print(terminal_tables([scores]))

Each sample's probes are answered by the unedited model and then inside `edit.applied`; afterwards
the model must be unchanged, bit for bit. Rephrases, other images and unrelated inputs share batches
with the request, so that a gated edit has to tell them apart.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrib.data.samples import EditData, EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.runs import NON_IDENTIFYING, Outcome, Rank, Run, prepare
from attrib.runs.collect import collect
from attrib.runs.manifest import provenance_of, stored
from attrib.vocabulary import SCORES_FILE
from editors.evaluation.extra_costs import NO_EXTRA, ExtraCosts
from editors.evaluation.groups import Groups
from editors.evaluation.reference_model import DEFAULT_PROTOCOLS, ReferenceModel
from editors.evaluation.scoring import SCORES, MakesEdits, Scoring
from editors.evaluation.tables import save_tables
from editors.io import files_digest

EDITOR_NAME = "editor_name"  # entry of a manifest; earlier versions wrote none
LENGTH = frozenset({"data.limit", "data.rows_read", "options.limit"})  # of a dataset


def evaluate(
    vlm: VLM,
    editor: MakesEdits,
    samples: Sequence[EditSample],
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    *,
    label: str | None = None,
    reference: ReferenceModel | None = None,
    num_edits: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    extra: ExtraCosts = NO_EXTRA,
) -> Result:
    """Score `editor`, one edit at a time or several at once.

    Unusable samples (a missing image, an empty target) are quarantined and named in the provenance.

    Args:
        vlm: The model.
        editor: The editor.
        samples: The edits, with the inputs that they are evaluated on.
        protocols: See `editors.evaluation.protocols`.
        label: Name of the editor in tables; by default its own.
        reference: The unedited model's answers, to share them between editors.
        num_edits: Edits that are applied at once; samples are grouped in their order.
        batch_size: Inputs per pass.
        seed: Seed of the bootstrap intervals that are computed from the result.
        extra: Whether to measure fluency and peak memory as well.

    Returns:
        One row per sample, protocol and metric (`editors.evaluation.scoring.METRICS`), of the
        editor and of the unedited model: example, editor, gate, kind (of the request), protocol,
        metric, value from 0 to 1. Rows of the protocol "cost" hold per edit: edit_ms; bytes stored;
        pass_ms and edited_pass_ms, of one pass over the request without and with the edit;
        with `extra` peak_bytes of making the first edit, and fluency before and after.

    Raises:
        NotRestored: An edit left the model changed.
        SetupError: No sample is usable.
        AttribError: No edit could be made, or `reference` is of another model.
    """
    reference = reference or ReferenceModel(vlm, tuple(protocols), batch_size)
    groups = Groups(list(samples), num_edits) if num_edits > 1 else None
    if reference.vlm is not vlm:
        raise AttribError(f"the unedited answers are of another model: {reference.vlm.name}")
    scoring = Scoring.of(editor, reference, protocols, label, groups, extra)
    reference.require_restored(scoring.label, "an earlier run")
    done = collect(vlm, samples, scoring, batch_size=1, what=f"edits of {scoring.label}")
    data = samples if isinstance(samples, EditData) else EditData("samples", "", list(samples))
    made = provenance_of(vlm, data, scoring.described(), seed, done)
    named = {"quarantined_rows": [str(row) for row in (*data.quarantined, *done.quarantined)]}
    return Result(SCORES, done.tables[SCORES], made | named)


def prepare_evaluation(
    scoring: Scoring,
    data: EditData,
    out: Path,
    editor_folders: Sequence[Path],
    *,
    options: Mapping[str, Any],
    seed: int = 0,
    free: Collection[str] = (),
    rank: Rank | None = None,
    invocation: str = "",
) -> Run:
    """Prepare a resumable evaluation; `execute(scoring)` runs it.

    Where the folder holds scores of the first of these edits, only the others are computed.

    Args:
        scoring: The measurement.
        data: The samples.
        out: Folder of the run.
        editor_folders: Folders of the editor and of its gate: their files identify the run, not
            their paths.
        options: Settings for the manifest.
        seed: Seed of the bootstrap intervals.
        free: Options in which a resumed run may differ.
        rank: This process among those that share the run.
        invocation: The command line, for the manifest.
    """
    identity = {
        EDITOR_NAME: scoring.editor.name,
        "gate": scoring.gate,
        "behind": scoring.behind_name,
        "label": scoring.label,
        "files": files_digest(editor_folders),
        "edits_at_once": scoring.num_edits,
    }
    return prepare(
        scoring.reference.vlm,
        data,
        out,
        name="evaluate",
        options={**options, **identity},
        seed=seed,
        free=NON_IDENTIFYING
        | {f"options.{name}" for name in free}
        | _of_more_edits(out, data, scoring.num_edits)
        | _of_earlier_version(out, scoring.editor.name),
        rank=rank or Rank(),
        invocation=invocation,
        batch_size=1,
    )


def _of_more_edits(out: Path, data: EditData, num_edits: int) -> frozenset[str]:
    """The entries that may differ where an evaluation goes on with more edits of the same data.

    Edits that are applied at once are grouped in their order, so that more of them may change the
    last group.
    """
    before = stored(out).get("data", {}).get("rows_read")
    now = data.provenance.get("rows_read")
    more = num_edits == 1 and before is not None and now is not None and now >= before
    return LENGTH if more else frozenset()


def _of_earlier_version(out: Path, name: str) -> frozenset[str]:
    """The entry of the editor's name, where the folder's manifest lacks it and may be of this one.

    Files identify a trained editor. One without files, whose settings stand in the manifest, was
    given by its name.
    """
    made = stored(out).get("options", {})
    if not made or EDITOR_NAME in made:
        return frozenset()
    is_other = "settings" in made and made.get("editor") != name
    return frozenset() if is_other else frozenset({f"options.{EDITOR_NAME}"})


def save_scores(
    runs: Sequence[Run], outcomes: Sequence[Outcome], out: Path
) -> tuple[list[Result], list[Path]]:
    """Write the scores of finished evaluations and, into `out`, their tables."""
    results = [Result(SCORES, done.tables[SCORES], done.manifest) for done in outcomes]
    folders = [run.out for run in runs]
    files = [r.save(f / SCORES_FILE) for f, r in zip(folders, results, strict=True)]
    tables = save_tables(results, out)
    return results, [*files, *tables, *(folder / "manifest.json" for folder in folders)]

"""The manifest of a run's folder: provenance of its numbers, and whether a run may continue it."""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.data import EditData
from attrib.errors import SetupError
from attrib.files import locked, versions, weights_digest, write_text
from attrib.model.company import reading_of
from attrib.model.fingerprint import fingerprint, template_record
from attrib.model.vlm import VLM

if TYPE_CHECKING:
    from attrib.runs.collected import Collected

MANIFEST = "manifest.json"
STARTING, RUNNING = "parts/.starting", "parts/.running"  # locks
LAYOUT = "attrib run 1"
# Entries that do not change a number: a run may be continued with others.
NON_IDENTIFYING = frozenset(
    {
        "invocation",
        "examples",
        "quarantined",
        "rows_per_shard",
        "model.name",
        "model.device",
        "data.rows_quarantined",
        "options.out",
        "options.batch_size",
        "options.device",
        "options.device_map",
    }
)
VERSIONS = ("attrib", "torch", "transformers")  # other versions hardly change a number
# Options of earlier versions, and their names now.
RENAMED = {"lead": "answer_prefix", "spare_last": "exclude_last", "max_versions": "max_copies"}
SHOWN = 8
LONGEST_VALUE = 40


def provenance_of(
    vlm: VLM,
    data: EditData,
    options: Mapping[str, Any],
    seed: int,
    done: "Collected | None" = None,
) -> dict[str, Any]:
    """Everything needed to compute the same numbers again, as JSON can hold it.

    Args:
        vlm: the model.
        data: the dataset.
        options: everything else that changes the numbers.
        seed: of noise and of the intervals that are computed from the tables.
        done: what was collected; adds the counts of used samples and quarantined rows.
    """
    config, folder = vlm.model.config, Path(vlm.model.name_or_path or "none")
    cap = vlm.unembedding.map.cap  # contributions are of the logit before it
    made = {
        "model": {
            "name": vlm.name,
            "class": type(vlm.model).__name__,
            "layers": vlm.num_layers,
            "dtype": str(vlm.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "commit": getattr(config, "_commit_hash", None),
            "weights_sha256": weights_digest(folder) if folder.is_dir() else None,
            "fingerprint": fingerprint(vlm),
            **({} if cap is None else {"soft_cap": cap}),
            **template_record(vlm),
            **({} if (reading := reading_of(vlm)) == "together" else {"pictures": reading}),
        },
        "data": {"name": data.name, "split": data.split, **data.provenance},
        "options": dict(options),
        "seed": seed,
        "versions": versions(),
    }
    if done is None:
        return made
    quarantined = len(data.quarantined) + len(done.quarantined)
    return {**made, "examples": len(done.used), "quarantined": quarantined}


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that is neither new, empty, nor a run's.

    Raises:
        SetupError: The folder, or a file in its place, belongs to something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SetupError(f"{out}: a file, not a folder; give another --out")
    others = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    starting = others == ["parts"] and (out / STARTING).exists() and not _shards(out)
    # Read last: another process may write it while this one looks.
    if starting or not others or stored(out).get("layout") == LAYOUT:
        return
    raise SetupError(
        f"{out}: the folder holds {others[0]} and no run of an analysis; give another --out"
    )


def refuse_other(out: Path, new: Mapping[str, Any], free: Set[str]) -> None:
    """Refuse a folder whose shards were made with other settings.

    Args:
        out: the run's folder.
        new: the manifest of the run to start.
        free: the entries that may differ, such as "options.batch_size".

    Raises:
        SetupError: Some entries differ; the message gives both values of each.
    """
    if _has_parts(out):
        _refuse_differences(out, new, free)


def _has_parts(out: Path) -> bool:
    """Whether something was computed in a run's folder."""
    return (out / MANIFEST).is_file() and _shards(out)


def _shards(out: Path) -> bool:
    return any((out / "parts").glob("*.parquet"))


def _refuse_differences(out: Path, new: Mapping[str, Any], free: Set[str]) -> None:
    if different := differences(stored(out), new, free):
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise SetupError(
            f"{out} was made with other settings: {'; '.join(different[:SHOWN])}{more}; give "
            "another --out, or the same settings"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Set[str]) -> list[str]:
    """One line per entry in which two manifests differ, except those in `free`."""
    if "options" in old:
        options = {RENAMED.get(name, name): value for name, value in old["options"].items()}
        old = {**old, "options": options}
    return diff(old, new, lambda key: _is_free(key, free))


def diff(
    old: Mapping[str, Any], new: Mapping[str, Any], is_free: Callable[[str], bool] | None = None
) -> list[str]:
    """One line per entry in which two JSON records differ, such as "limit: 8 there, 9 now".

    Args:
        old: the record on disk.
        new: the record of what is asked for.
        is_free: whether an entry, given by its dotted name, may differ.
    """
    before, now = (dict(flatten(json.loads(json.dumps(dict(m))))) for m in (old, new))
    lines = {}  # an option and the entry that follows from it give one line
    for key in [*now, *(key for key in before if key not in now)]:
        there, here = before.get(key), now.get(key)
        if there != here and not (is_free is not None and is_free(key)):
            name = key.rpartition(".")[2]
            lines[f"{name}: {_short(there)} there, {_short(here)} now"] = None
    return list(lines)


def write(out: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest atomically."""
    text = json.dumps({"layout": LAYOUT, **manifest}, indent=2, allow_nan=False)
    return write_text(out / MANIFEST, text + "\n")


@contextmanager
def claimed(out: Path, manifest: Mapping[str, Any], free: Set[str]) -> Iterator[dict[str, Any]]:
    """Hold a run's folder for its settings; other processes with the same ones may hold it, too.

    Args:
        out: the run's folder.
        manifest: of this process's run. It is written if nothing was computed and no other
            process computes.
        free: the entries in which it may differ from the one in the folder.

    Yields:
        The manifest in the folder. Of processes that start at once, all get that of the first.

    Raises:
        SetupError: The folder is made with other settings, maybe by a process that runs.
    """
    with ExitStack() as stack:
        with locked(out / STARTING):  # one process at a time judges the folder
            with locked(out / RUNNING, wait=False) as alone:
                if alone and not _has_parts(out):
                    write(out, manifest)
            _refuse_differences(out, manifest, free)
            stack.enter_context(locked(out / RUNNING, shared=True))
        yield stored(out) or dict(manifest)


def stored(out: Path) -> dict[str, Any]:
    """The manifest in a folder; {} if there is none that can be read."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _is_free(key: str, free: Set[str]) -> bool:
    head, _, name = key.partition(".")
    return key in free or key == "layout" or (head == "versions" and name not in VERSIONS)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."

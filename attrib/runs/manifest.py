"""The manifest of a run's folder: provenance of its numbers, and whether a run may continue it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attrib.data import EditData
from attrib.errors import SetupError
from attrib.files import versions, weights_digest, write_text
from attrib.model.devices import loaded
from attrib.model.vlm import VLM
from attrib.model.wrapped import adapters_of, plain_parts

if TYPE_CHECKING:
    from attrib.runs.collected import Collected

MANIFEST = "manifest.json"
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
SAMPLED = 256  # elements of each weight in the fingerprint


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


def fingerprint(vlm: VLM) -> str:
    """SHA-256 of the model's config and of evenly spaced elements of each weight.

    Distinguishes models that share a name or a folder, edited ones too, at a cost independent of
    their size. It does not depend on the device.
    """
    digest = hashlib.sha256(_settings(vlm.model.config.to_dict()).encode())
    if adapters := adapters_of(vlm.model):  # the same weights with another adapter active
        digest.update(json.dumps(adapters, sort_keys=True).encode())
    for name, tensor in vlm.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # extra state of some layers
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(_sample(tensor))
            continue
        with loaded(holder := vlm.model.get_submodule(name.rpartition(".")[0])):
            tensor = getattr(holder, name.rpartition(".")[2])
            digest.update(b"" if tensor.is_meta else _sample(tensor))
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    """Evenly spaced elements, also of the parts of a quantised tensor."""
    parts = [part.detach().flatten() for part in plain_parts(tensor)]
    some = [part[:: max(1, part.numel() // SAMPLED)].cpu().contiguous() for part in parts]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in some)


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that is neither new, empty, nor a run's.

    Raises:
        SetupError: The folder, or a file in its place, belongs to something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SetupError(f"{out}: a file, not a folder; give another --out")
    if stored(out).get("layout") == LAYOUT:
        return
    if others := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
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
    if not (out / MANIFEST).is_file() or not any((out / "parts").glob("*.parquet")):
        return  # nothing was computed yet
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
    before, now = (dict(_flatten(json.loads(json.dumps(dict(m))))) for m in (old, new))
    lines = {}  # an option and the entry that follows from it give one line
    for key in [*now, *(key for key in before if key not in now)]:
        there, here = before.get(key), now.get(key)
        if there != here and not (is_free is not None and is_free(key)):
            name = key.rpartition(".")[2]
            lines[f"{name}: {_short(there)} there, {_short(here)} now"] = None
    return list(lines)


def write(out: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest atomically."""
    return write_text(out / MANIFEST, _text(manifest))


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps({"layout": LAYOUT, **manifest}, indent=2, allow_nan=False) + "\n"


def write_first(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest unless there is one; the one in the folder.

    Of several processes that start at once, all get that of the first.
    """
    if not stored(out):
        mine = write_text(out / f"{MANIFEST}.{os.getpid()}", _text(manifest))
        try:
            os.link(mine, out / MANIFEST)  # fails if there is one, unlike a renaming
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            write(out, manifest)
        finally:
            mine.unlink()
    return stored(out)


def stored(out: Path) -> dict[str, Any]:
    """The manifest in a folder; {} if there is none that can be read."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _settings(config: Mapping[str, Any]) -> str:
    """A model config as text, without its path and the version that read it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
            how = value.get("quantization_config")  # torchao's holds names that start with "_"
            kept |= {} if how is None else {"quantization_config": how}
            return {k: v for k, v in kept.items() if k != "transformers_version"}
        return value

    return json.dumps(plain(config), sort_keys=True, default=str)


def _is_free(key: str, free: Set[str]) -> bool:
    head, _, name = key.partition(".")
    return key in free or key == "layout" or (head == "versions" and name not in VERSIONS)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."

"""Whether results are of one model and one dataset, judged by their provenance."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrib.data import EditData
from attrib.errors import AttribError
from attrib.results import Result
from attrib.runs.provenance import provenance_of

if TYPE_CHECKING:
    from attrib.model.vlm import VLM

SHORT = 8  # digits of a digest in messages
NO_DATA = EditData("", "", [])


def shared_source(results: Sequence[Result]) -> dict[str, Any]:
    """The model, data and versions of all results, and the options of each.

    Raises:
        AttribError: Two results are of different models or data; the message names both.
    """
    first = results[0].provenance
    for other in results[1:]:
        for part, same in (("model", same_model), ("data", same_data)):
            one, two = first.get(part, {}), other.provenance.get(part, {})
            if not same(one, two):
                raise AttribError(
                    f"{results[0].analysis} is of {named(one)}, {other.analysis} of {named(two)}: "
                    f"layers are selected for one {part}; run one of them again"
                )
    shared = {part: dict(first.get(part, {})) for part in ("model", "data", "versions")}
    tables = [
        {
            "analysis": result.analysis,
            "examples": result.examples,
            "seed": result.seed,
            "options": dict(result.provenance.get("options", {})),
        }
        for result in results
    ]
    return {**shared, "tables": tables}


def model_of(vlm: "VLM") -> dict[str, Any]:
    """A model as provenance describes it: name, class, layers, digests."""
    return provenance_of(vlm, NO_DATA, {}, 0)["model"]


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions can be of the same weights.

    The fingerprint decides if both have one of the same dtype; else the checkpoint's digest, else
    its commit, else name, class and depth. Entries that one of them lacks are ignored.
    """
    if not _agree(one, other, ("class", "layers")):
        return False
    fingerprint = ["fingerprint"] if one.get("dtype") == other.get("dtype") else []
    for digest in (*fingerprint, "weights_sha256", "commit"):
        if one.get(digest) and other.get(digest):
            return one[digest] == other[digest]
    return _agree(one, other, ("name",))


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one file and split; the number of rows read may differ."""
    digests = one.get("sha256"), other.get("sha256")
    if all(digests):
        return digests[0] == digests[1] and _agree(one, other, ("split",))
    return _agree(one, other, ("name", "split"))


def named(part: Mapping[str, Any]) -> str:
    """A short name of a model or dataset for messages."""
    digest = part.get("fingerprint") or part.get("weights_sha256") or part.get("sha256")
    details = [f"{part['layers']} layers"] if part.get("layers") else []
    details += [part["dtype"]] if part.get("dtype") else []
    details += [f"digest {digest[:SHORT]}"] if digest else []
    name = f"{part.get('name') or 'no name'} {part.get('split') or ''}".strip()
    return f"{name} ({', '.join(details)})" if details else name


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return all(
        one[key] == other[key]
        for key in keys
        if one.get(key) is not None and other.get(key) is not None
    )

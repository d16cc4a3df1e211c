"""Whether numbers are about one model and one dataset; a model as a file remembers it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrib.data import EditData
from attrib.errors import AttribError
from attrib.results import Result
from attrib.runs.provenance import provenance_of

if TYPE_CHECKING:
    from attrib.model.vlm import VLM

SHORT = 8  # digits of a digest that are shown
NO_DATA = EditData("", "", [])


def shared_source(results: Sequence[Result]) -> dict[str, Any]:
    """Model, data and versions that all results share, and what was asked of each table.

    Raises:
        AttribError: two are of different models or data; the message names both.
    """
    first = results[0].provenance
    for other in results[1:]:
        for part, same in (("model", same_model), ("data", same_data)):
            here, there = first.get(part, {}), other.provenance.get(part, {})
            if not same(here, there):
                raise AttribError(
                    f"{results[0].analysis} is of {named(here)}, {other.analysis} of "
                    f"{named(there)}: layers are selected for one {part}; run one of them again"
                )
    return {
        "model": dict(first.get("model", {})),
        "data": dict(first.get("data", {})),
        "versions": dict(first.get("versions", {})),
        "tables": [_asked(result) for result in results],
    }


def model_of(vlm: "VLM") -> dict[str, Any]:
    """A model as provenance describes it: name, class, layers, digests."""
    return provenance_of(vlm, NO_DATA, {}, 0)["model"]


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions can be of the same weights.

    A fingerprint decides where both were taken in one number format; else the checkpoint's digest,
    else its commit, else name, class and depth. What one of them does not say does not count.
    """
    if not _agree(one, other, ("class", "layers")):
        return False
    formats = ["fingerprint"] if one.get("dtype") == other.get("dtype") else []
    for digest in (*formats, "weights_sha256", "commit"):
        if one.get(digest) and other.get(digest):
            return one[digest] == other[digest]
    return _agree(one, other, ("name",))


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one file and split; how many rows of it were read is free."""
    digests = one.get("sha256"), other.get("sha256")
    if all(digests):
        return digests[0] == digests[1] and _agree(one, other, ("split",))
    return _agree(one, other, ("name", "split"))


def named(part: Mapping[str, Any]) -> str:
    """A model or a dataset in a few words."""
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


def _asked(result: Result) -> dict[str, Any]:
    options = dict(result.provenance.get("options", {}))
    return {
        "analysis": result.analysis,
        "examples": result.examples,
        "seed": result.seed,
        "options": options,
    }

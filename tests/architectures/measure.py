"""Build one type and run all checks on it: a row of the table, whatever goes wrong."""

import time
import traceback
from typing import Any

from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

import attrib
from attrib.errors import AttribError
from attrib.model.company import mixes_pictures
from tests.architectures.bridge import differences, is_bridged
from tests.architectures.prompts import ByHand
from tests.architectures.registry import BUILDERS, OUT_OF_SCOPE, REMARKS, TYPES, build, type_of

Row = dict[str, Any]
ALONE = "pictures of a batch change each other: each example is read as if it were alone"
LONGEST = 300  # characters of an error


def measure(name: str) -> Row:
    """The row of a type: the fields of `table.FIELDS` and its seconds, whatever goes wrong."""
    start = time.monotonic()
    row: Row = empty(name)
    row |= _outcome(name)
    known = [REMARKS[name]] if name in REMARKS else []
    row["remarks"] = known + row["remarks"]
    return row | {"seconds": round(time.monotonic() - start, 1)}


def empty(name: str) -> Row:
    """The row of a type of which nothing is known yet."""
    scope = OUT_OF_SCOPE.get(name, "decoder-only")
    about = {"type": name, "model": TYPES[type_of(name)], "scope": scope}
    return about | {
        "processor": "none",
        "passed": 0,
        "total": 0,
        "failed": [],
        "remarks": [],
        "bridge": "",
    }


def _outcome(name: str) -> Row:
    if name not in BUILDERS:
        return {"remarks": ["not built: no builder in tests/architectures"]}
    try:
        model, processor = build(name)
    except Exception as error:  # of any class: a type of a new release
        return {"remarks": [f"not built: {_line(error)}"], "trace": traceback.format_exc()}
    try:
        vlm = attrib.VLM(model, processor, name)
    except AttribError as error:
        return {"processor": kind(name, processor), "remarks": [f"refused: {_line(error)}"]}
    except Exception as error:
        text = f"VLM() fails with a traceback: {_line(error)}"
        return {"remarks": [text], "trace": traceback.format_exc()}
    if processor is None:
        return {"remarks": ["accepted by VLM(); no processor here, so nothing is checked"]}
    report, bridge = attrib.check(vlm), _bridge(vlm)
    failed = [[one.check, _cut(one.detail)] for one in report.failed]
    passed = len(report.results) - len(failed)
    remarks = [ALONE] if mixes_pictures(vlm) else []
    return {"processor": kind(name, processor), "passed": passed, "total": len(report.results),
            "failed": failed, "bridge": bridge, "remarks": remarks}  # fmt: skip


def _bridge(vlm: attrib.VLM) -> str:
    """How our reads compare with the cache of TransformerLens; "" if it has no such type."""
    if not is_bridged(vlm.model):
        return ""
    try:
        return _cut("; ".join(f"{what}: {miss}" for what, miss in differences(vlm))) or "equal"
    except Exception as error:  # of any class: it is another package's
        return f"fails: {_line(error)}"


def kind(name: str, processor: Any) -> str:
    """Which processor it is: "real", "by hand", "none", or the class of another type's."""
    if processor is None or isinstance(processor, ByHand):
        return "none" if processor is None else "by hand"
    ours, theirs = type(processor).__name__, PROCESSOR_MAPPING_NAMES.get(type_of(name))
    if ours != theirs:
        return ours
    images = type(processor.image_processor).__name__
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(type_of(name)) or {}
    return "real" if not known or images in known.values() else f"real, with {images}"


def _line(error: BaseException) -> str:
    text = _cut(" ".join(str(error).split()))
    return text if isinstance(error, AttribError) else f"{type(error).__name__}: {text}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."

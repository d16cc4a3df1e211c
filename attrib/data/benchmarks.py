"""Benchmarks of edits: their files, and the fields of their rows.

| split | file |
|---|---|
| `vqa-train`, `vqa-eval`, `caption-train`, `caption-eval` | E-VQA and E-IC (MMEdit) |
| `vlkeb-train`, `vlkeb-eval`, `vlkeb-onehop`, `vlkeb-multihop` | VLKEB |
| `mmke-entity-train`, ..., `mmke-user-eval` | MMKE-Bench |
| `comprehendedit-train`, `comprehendedit-test` | ComprehendEdit |
| `cckeb-train`, `cckeb-eval` | CCKEB (MemEIC) |

E-VQA, E-IC and VLKEB were read from real rows. The layouts of MMKE-Bench, ComprehendEdit and CCKEB
are those that their published loaders read; no rows of them were at hand.

`validate` turns a row of any of them into one with the eleven fields of `attrib.data.easyedit`
(`image_rephrase` is null where a benchmark has none), and, where there are such inputs,

    portability   list of {type, image, prompt, target}: what follows from the edit
    reliability   list of {type, image, prompt, target}: the edited fact asked about, with the
                  picture or by text alone
    linked        list of {prompt, target}: facts without an image that are edited along with it
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attrib.data.easyedit import ELEVEN, FILES, Bad, Row, Task, check_text, validate_row
from attrib.errors import AttribError, RowError

EXTRA = ("portability", "reliability", "linked")
LEVELS = ("entity", "visual", "user")  # MMKE-Bench's files
Extra = Callable[[Row, Bad], dict[str, list[dict[str, Any]]]]


def _nothing(_row: Row, _bad: Bad) -> dict[str, list[dict[str, Any]]]:
    return {}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's layout.

    Attributes:
        name: Its name, the beginning of its splits.
        files: Its files by split.
        images: Folder of its images below that of the files.
        style: Its prompt style.
        fields: Its names of the eleven fields that have other names, None for those it lacks.
        extra: Reads the further inputs of a row.
        task: The task.
    """

    name: str
    files: Mapping[str, str]
    images: str = "images"
    style: str = "bare"
    fields: Mapping[str, str | None] = field(default_factory=dict)
    extra: Extra = _nothing
    task: Task = "vqa"

    def named(self, name: str) -> str:
        """This benchmark's name of one of the eleven fields."""
        return self.fields.get(name) or name

    def place(self, field: str) -> str:
        """This benchmark's name of an image's field, such as "image[1]" of several images."""
        head, bracket, rest = field.partition("[")
        return self.named(head) + bracket + rest

    def validate(self, row: object, file: str, index: int) -> Row:
        """The normalised row; raises RowError with the field at fault."""
        names = {name: self.fields.get(name, name) for name in ELEVEN}
        found = validate_row(row, file, index, names)

        def bad(name: str, reason: str) -> RowError:
            return RowError(reason, file=file, row=index, field=name)

        extra = {name: items for name, items in self.extra(found, bad).items() if items}
        for name, items in extra.items():
            for i, item in enumerate(items):
                for key in ("prompt", "target"):
                    check_text(item.get(key), False, _at(bad, f"{name}[{i}].{key}"))
        return {**found, **extra}


def _at(bad: Bad, place: str) -> Callable[[str], RowError]:
    return lambda reason: bad(place, reason)


def _portability(row: Row, bad: Bad) -> dict[str, list[dict[str, Any]]]:
    """`port_new`: one-hop questions with the fact behind them, or questions over several hops."""
    given = [] if row.get("port_new") is None else row["port_new"]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise bad("port_new", "is not a list of objects")
    found, linked = [], []
    image = row.get("one_hop_img") or row["image"]  # MMKE asks about a picture of its own
    for i, item in enumerate(given):
        if "port_q" in item:
            kind, question, answer = "1-hop", item["port_q"], item.get("port_a")
            linked.append({"prompt": item.get("port_edit_q"), "target": item.get("port_edit_a")})
        else:
            asked = item.get("Q&A")
            if not isinstance(asked, dict):
                raise bad(f"port_new[{i}].Q&A", "is missing or no object")
            kind = str(item.get("port_type", "1-hop"))
            question, answer = asked.get("Question"), asked.get("Answer")
        found.append({"type": kind, "image": image, "prompt": question, "target": answer})
    return {"portability": found, "linked": linked}


def _mmke(row: Row, bad: Bad) -> dict[str, list[dict[str, Any]]]:
    """MMKE-Bench: `rel*` ask by text alone, `m_rel*` about the edit's picture."""
    found = []
    for kind, prefix in (("text", "rel"), ("picture", "m_rel")):
        for name in (prefix, f"{prefix}_1", f"{prefix}_2"):
            if name not in row:
                continue
            answers = [f"{name}_ans", name.replace(prefix, f"{prefix}_ans", 1)]
            answer = next((row[key] for key in answers if key in row), None)
            image = row["image"] if kind == "picture" else None
            found.append({"type": kind, "image": image, "prompt": row[name], "target": answer})
    if not found:
        raise bad("rel", "is missing, as is rel_1; MMKE-Bench asks about the fact by text")
    return {**_portability(row, bad), "reliability": found}


def _cckeb(row: Row, bad: Bad) -> dict[str, list[dict[str, Any]]]:
    """CCKEB: a textual edit along with the visual one, and questions that need both."""
    edit = row.get("textual_edit")
    linked = []
    if edit is not None:
        if not isinstance(edit, dict):
            raise bad("textual_edit", "is no object")
        linked = [{"prompt": edit.get("src"), "target": _joined(edit.get("alt"))}]
    return {**_portability(row, bad), "linked": linked}


def _joined(value: Any) -> Any:
    """A list of words as text, as CCKEB's loader joins it."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark("vqa", {s: f for s, f in FILES.items() if s.startswith("vqa")}, style="visedit"),
        Benchmark(
            "caption",
            {s: f for s, f in FILES.items() if s.startswith("caption")},
            style="visedit",
            task="captions",
        ),
        Benchmark(
            "vlkeb",
            {
                "vlkeb-train": "train.json",
                "vlkeb-eval": "eval.json",
                "vlkeb-onehop": "eval_edit_onehop.json",
                "vlkeb-multihop": "eval_multihop.json",
            },
            images="VLKEB_images",
            extra=_portability,
        ),
        Benchmark(
            "mmke",
            {
                f"mmke-{level}-{part}": f"data_json/{level}/{part}.json"
                for level in LEVELS
                for part in ("train", "eval")
            },
            images="data_image",
            extra=_mmke,
        ),
        Benchmark(
            "comprehendedit",
            {f"comprehendedit-{part}": f"ComprehendEdit_{part}.json" for part in ("train", "test")},
            images=".",
            style="comprehendedit",
            fields={
                "src": "question",
                "alt": "answer",
                "pred": None,
                "image_rephrase": None,
                "loc": "locality_prompt",
                "loc_ans": "locality_ground_truth",
                "m_loc": "multimodal_locality_image",
                "m_loc_q": "multimodal_locality_prompt",
                "m_loc_a": "multimodal_locality_ground_truth",
            },
        ),
        Benchmark(
            "cckeb",
            {f"cckeb-{part}": f"CCKEB_{part}.json" for part in ("train", "eval")},
            images="VLKEB_images",
            extra=_cckeb,
        ),
    )
}
SPLITS: dict[str, str] = {s: f for one in BENCHMARKS.values() for s, f in one.files.items()}


def splits_in(folder: Path) -> list[str]:
    """The splits whose file is in a folder."""
    return [split for split, file in SPLITS.items() if (folder / file).is_file()]


def benchmark_of(split: str) -> Benchmark:
    """The benchmark of a split.

    Raises:
        AttribError: There is no such split.
    """
    name = split.partition("-")[0]
    if split not in SPLITS:
        raise AttribError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    return BENCHMARKS[name]

"""What makes a usable row of a benchmark doubtful: flags by name."""

import re
from collections.abc import Callable

from attrib.data.easyedit import Row
from attrib.data.overlap import same_image

REFUSAL = re.compile(r"(?i)\bsorry, but|\bi cannot\b|\bas an ai\b")
OPEN_QUESTION = re.compile(r"(?i)\W*(what|how|where|which)\b")
QUALITY_FLAGS: dict[str, Callable[[Row], bool]] = {
    "rephrase starts with a quote": lambda r: r["rephrase"].startswith('"'),
    "rephrase has line breaks": lambda r: "\n" in r["rephrase"],
    "rephrase is a refusal": lambda r: REFUSAL.search(r["rephrase"]) is not None,
    "rephrase equals src": lambda r: r["rephrase"].lower() == r["src"].lower(),
    "yes/no answer, but rephrase asks what, how, where or which": lambda r: (
        is_yes_no(r) and OPEN_QUESTION.match(r["rephrase"]) is not None
    ),
    "src or rephrase ends with a blank": lambda r: " " in (r["src"][-1:], r["rephrase"][-1:]),
    "pred equals alt": lambda r: r["pred"].lower() == r["alt"].lower(),
    "alt has outer white space": lambda r: r["alt"] != r["alt"].strip(),
    "alt ends with a blank": lambda r: r["alt"].endswith(" "),
    "alt ends with a line break": lambda r: r["alt"].endswith("\n"),
    "alt starts with white space": lambda r: r["alt"] != r["alt"].lstrip(),
    "alt has double blanks inside": lambda r: "  " in r["alt"].strip(),
    "loc_ans has line breaks": lambda r: "\n" in r["loc_ans"],
    "loc_ans is not ASCII": lambda r: not r["loc_ans"].isascii(),
    "m_loc is the edit image": same_image,
    "m_loc is null": lambda r: r["m_loc"] is None,
}


def is_yes_no(row: Row) -> bool:
    """Whether the answer is yes or no."""
    return row["alt"].strip().lower() in ("yes", "no")

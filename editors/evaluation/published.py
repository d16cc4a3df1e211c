"""What the papers published: the rows of VisEdit's Tables 1 and 6 and DualEdit's Table 2."""

import csv
from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("published.csv")
DATA = {"scenes-vqa": "E-VQA", "scenes-captions": "E-IC"}
# VisEdit copied rows that were measured by EasyEdit's definitions, on other prompts and pictures.
PROTOCOLS = {"paper": "paper", "easyedit": "easyedit: not comparable with the others"}
SCORES = {"rel": "Rel", "t_gen": "T-Gen", "v_gen": "V-Gen", "t_loc": "T-Loc", "m_loc": "M-Loc"}
COLUMNS = ["editor", *SCORES.values(), "Avg", "protocol", "source", "note"]


def published(backbone: str, data: str) -> pd.DataFrame:
    """The published rows beside which those of a model and dataset may be put.

    Args:
        backbone: A model whose name says its family: one with "blip2", "llava" or "minigpt4" in it.
        data: An embedded dataset, or E-VQA or E-IC.

    Returns:
        One row per editor: the five scores and their mean in per cent, the protocol they were
        measured by, the paper they stand in, a note. Empty for a family or dataset not published.
    """
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == DATA.get(data, data)]
    return pd.DataFrame(
        [_shown(row) for row in rows if row["backbone"] in backbone.lower()], columns=COLUMNS
    )


def _shown(row: dict[str, str]) -> dict[str, object]:
    scores = {name: float(row[key]) for key, name in SCORES.items()}
    return {
        "editor": row["editor"], **scores, "Avg": round(sum(scores.values()) / len(scores), 2),
        "protocol": PROTOCOLS[row["protocol"]], "source": row["source"], "note": row["note"],
    }  # fmt: skip

"""Does an edit about a picture leave answers to questions about the real world as they were?

    python -m benchmarks.real_world_locality --editor RUN --gate GATE --data FOLDER

The text locality of scenes-vqa asks about things that only the embedded models know. Here each test
edit is followed by questions that any language model is asked, in a seeded draw: common facts
(`common_facts.csv`, in SmolLM2's chat format) and the natural questions that E-VQA has for text
locality (`loc` of `vqa/vqa_train.json` in FOLDER, as they are). Scored as every locality: the
argmax on the tokens of the right answer, teacher-forced, must be that of the unedited model. The
adapters are measured without a gate and behind GATE. Writes
`figures/tables/real-world-locality-smol-llava/`.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

import attrib
from attrib.data import EditRequest, EditSample
from attrib.files import write_text
from attrib.model.vlm import VLM
from benchmarks.smol_llava.subject import CHAT, common_facts
from editors import evaluate
from editors.evaluation.tables import summary
from editors.gating.gates import load_gate
from editors.methods.adapter_editor import AdapterEditor
from editors.registry import load_editor

COMMON, NATURAL = "common facts", "E-VQA's natural questions"
PROTOCOLS = ("paper", "exact")


def questions_of(folder: Path) -> dict[str, list[EditRequest]]:
    """All questions by kind, with their right answers; each once."""
    common = [(CHAT.format(question), answer) for question, answer in common_facts()]
    rows = json.loads((folder / "vqa" / "vqa_train.json").read_text())
    natural = dict.fromkeys((row["loc"], row["loc_ans"]) for row in rows)
    return {
        kind: [EditRequest(None, *pair) for pair in pairs]
        for kind, pairs in ((COMMON, common), (NATURAL, list(natural)))
    }


def followed(
    samples: Sequence[EditSample], questions: Sequence[EditRequest], num: int, seed: int
) -> list[EditSample]:
    """The edits, each with `num` of the questions as its only text locality."""
    return [
        EditSample(
            sample.id,
            sample.request,
            text_locality=random.Random(f"{seed}:{sample.id}").sample(list(questions), num),
            meta={"kind": sample.meta["kind"]},
        )
        for sample in samples
    ]


def measure(
    vlm: VLM, editor: AdapterEditor, samples: Sequence[EditSample], options: argparse.Namespace
) -> Iterator[pd.DataFrame]:
    """Scores by kind of question, without a gate and behind the editor's."""
    for kind, questions in questions_of(options.data).items():
        asked = followed(samples, questions, options.questions, options.seed)
        results = [evaluate(vlm, e, asked, PROTOCOLS) for e in (editor.with_gate(None), editor)]
        frame = summary(results)
        kept = frame[(frame["editor"] != "unedited") & frame["metric"].isin(["rel", "t_loc"])]
        yield kept.assign(questions=kind, known=len(questions))
        sys.stderr.write(f"{kind}\n{kept.round(1).to_string(index=False)}\n")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_world_locality")
    parser.add_argument("--model", default="smol-llava")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--editor", type=Path, required=True, help="folder of trained adapters")
    parser.add_argument("--gate", type=Path, required=True, help="folder of a fitted gate")
    parser.add_argument("--data", type=Path, required=True, help="folder in the E-VQA layout")
    parser.add_argument("--limit", type=int, default=100, help="test edits of scenes-vqa")
    parser.add_argument("--questions", type=int, default=10, help="of each kind after an edit")
    parser.add_argument("--seed", type=int, default=0)
    place = Path("figures/tables/real-world-locality-smol-llava")
    parser.add_argument("--out", type=Path, default=place)
    options = parser.parse_args(arguments)
    vlm = attrib.load(options.model, dtype=options.dtype)
    editor = load_editor(options.editor, vlm)
    assert isinstance(editor, AdapterEditor)
    samples = list(attrib.data.load("scenes-vqa", split="test", limit=options.limit))
    parts = measure(vlm, editor.with_gate(load_gate(options.gate)), samples, options)
    frame = pd.concat(list(parts), ignore_index=True)
    write_text(options.out / "summary.csv", frame.to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()

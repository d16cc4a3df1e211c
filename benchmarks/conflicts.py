"""Two edits of one picture and question: the newer holds, and unlearning it brings the other back.

    python -m benchmarks.conflicts                      # the editor that comes with tiny-llava

Each of 100 test edits of scenes-vqa is made twice: with its own target, then with that of another
edit, the next one whose target is as fit an answer: a color for a color, a letter for a letter.
Counted at the request, generated greedily:

- among all 200 edits, the gate picks the newer one of the pair; "another edit" if a third one;
- with both of a pair held, the answer is that of the newer edit alone, and its target;
- after the newer one is unlearned, the logits are those of the older edit alone, bit for bit;
- after both are, they are those of the unedited model, bit for bit. Control: the edits change them.

Writes `benchmarks/results/conflicts.json`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data import EditRequest, EditSample
from attrib.data.scenes.vocabulary import COLORS, NUMBERS, OPTIONS, PLACES, SHAPES
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, save
from editors import load_editor
from editors.base import encode_requests

MOST_TOKENS = 8
OTHER, NONE = "the gate picks an edit of another pair", "the gate picks none"


WORDS = (OPTIONS, NUMBERS, COLORS, SHAPES, PLACES)


def pairs_of(samples: Sequence[EditSample]) -> list[tuple[EditRequest, EditRequest]]:
    """Each request, and the same one with another edit's target of the same kinds of words."""
    found = []
    for i, sample in enumerate(samples):
        asked = sample.request
        later = [s.request.target for s in (*samples[i + 1 :], *samples[:i])]  # the next one first
        other = next(
            target
            for target in later
            if target != asked.target and kinds_of(target) == kinds_of(asked.target)
        )
        found.append((asked, EditRequest(asked.source, asked.prompt, other)))
    return found


def kinds_of(target: str) -> list[int]:
    """Which list of `WORDS` each word of a target is in."""
    return [next(i for i, words in enumerate(WORDS) if word in words) for word in target.split()]


@torch.no_grad()
def measure(
    vlm: VLM, editor: Any, pairs: Sequence[tuple[EditRequest, EditRequest]]
) -> dict[str, int]:
    """How many pairs do what they should, by what that is."""
    made = [tuple(editor.edit(vlm, request) for request in pair) for pair in pairs]
    every = editor.merge([*(old for old, _ in made), *(new for _, new in made)])
    picks = {0: "the gate picks the older", len(pairs): "the gate picks the newer"}
    counts = Counter(dict.fromkeys([*picks.values(), OTHER, NONE], 0))
    for i, (pair, edits) in enumerate(zip(pairs, made, strict=True)):
        batch = encode_requests(vlm, pair[1:], targets=False)
        hidden = states_up_to(vlm, batch, every.gate.layers)
        picked = int(every.index.nearest(every.gate.states(hidden, batch))[0])
        counts[picks.get(picked - i, OTHER if picked >= 0 else NONE)] += 1
        counts.update(_of_pair(vlm, editor, pair, edits, batch))
    return dict(counts)


def _of_pair(vlm: VLM, editor: Any, pair: Any, edits: Any, batch: Batch) -> dict[str, bool]:
    """What two edits do that are held alone."""
    (older, newer), both = edits, editor.merge(edits)
    left = both.without(pair[1])
    logits = {
        name: _applied(vlm, edit, lambda: vlm.last_logits(batch))
        for name, edit in {"both": both, "old": older, "left": left}.items()
    }
    none = _applied(vlm, left.without(pair[0]), lambda: vlm.last_logits(batch))
    plain = vlm.last_logits(batch)
    said, alone = (
        _applied(vlm, edit, lambda: vlm.generate(batch, MOST_TOKENS)) for edit in (both, newer)
    )
    return {
        "answers as the newer alone": said == alone,
        "answers with the newer target": said == [pair[1].target.strip()],
        "the older edit's bits after the newer is unlearned": torch.equal(
            logits["left"], logits["old"]
        ),
        "the unedited bits after both are": torch.equal(none, plain),
        "the edits change the logits": not torch.equal(logits["both"], plain)
        and not torch.equal(logits["old"], plain),
    }


def _applied(vlm: VLM, edit: Any, run: Callable[[], Any]) -> Any:
    with edit.applied(vlm):
        return run()


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conflicts")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--editor", default="dualedit", help="a name, or the folder of an editor")
    parser.add_argument("--limit", type=int, default=100, help="pairs of edits")
    parser.add_argument("--out", type=Path, default=RESULTS / "conflicts.json")
    options = parser.parse_args(arguments)
    vlm = attrib.load(options.model)
    samples = attrib.data.load("scenes-vqa", split="test", limit=options.limit)
    counts = measure(vlm, load_editor(options.editor, vlm), pairs_of(samples))
    for name, count in counts.items():
        sys.stdout.write(f"{name}: {count} of {len(samples)}\n")
    head = {"model": options.model, "editor": options.editor, "pairs": len(samples), "seed": 0}
    save(options.out, {"threads": torch.get_num_threads(), **head, "counts": counts}, {})


if __name__ == "__main__":
    main()

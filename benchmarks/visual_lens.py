"""Does the logit lens of a visual token name what its patch shows?

    python -m benchmarks.visual_lens --limit 200         # about a minute

A patch is occupied where an object of the scene covers it (`attrib faithfulness` uses the same
rule). Its token is right at a layer if the likeliest token of its state is the object's shape or
colour. The control asks for the object of another patch of another scene. Prints and writes
`benchmarks/results/visual-lens.json`: shares per layer, and at any layer.
"""

import argparse

import numpy as np

import attrib
from attrib.analyses.pointing_game import masks_to_grid
from attrib.data.scenes.ground_truth import ground_truths
from benchmarks.harness import RESULTS, save

TOPS = (1, 5)


def measure(model: str, limit: int) -> list[dict[str, object]]:
    """A row per number of likeliest tokens that may name the object, and for the control."""
    vlm = attrib.load(model)
    data = attrib.data.load("scenes-vqa", split="test", limit=limit)
    truths = ground_truths(data)
    words, tokens = [], []
    for sample in data:
        batch = vlm.encode([sample.request.image], [sample.request.prompt])
        lens = attrib.logit_lens(vlm, batch, top=max(TOPS)).tokens[0][:, batch["visual"][0]]
        truth, grid = truths[sample.id], batch.pictures[0][0].grid
        occupied = masks_to_grid(truth.masks(), grid)
        for item, cells in zip(truth.scene.objects, occupied, strict=True):
            for cell in np.flatnonzero(cells):
                names = {vlm.answer_token(item.shape), vlm.answer_token(item.color)}
                words.append(np.array(sorted(names)))
                tokens.append(lens[:, cell].numpy())
    rows = []
    for what, asked in (("own object", words), ("control", words[7:] + words[:7])):
        for top in TOPS:
            pairs = zip(tokens, asked, strict=True)
            named = np.array([np.isin(t[:, :top], w).any(1) for t, w in pairs])
            rows.append(
                {
                    "words of": what, "top": top, "patches": len(named),
                    "any layer": float(named.any(1).mean()),
                    "by layer": [round(float(share), 4) for share in named.mean(0)],
                }
            )  # fmt: skip
            print(rows[-1])
    return rows


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    rows = measure(options.model, options.limit)
    save(RESULTS / "visual-lens.json", vars(options), {"rows": rows})


if __name__ == "__main__":
    main()

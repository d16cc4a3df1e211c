"""What a page of `attrib explore` costs beside plain generation, and how large it is.

    python -m benchmarks.explore                       # two CPU cores: about two minutes
    python -m benchmarks.explore --shape llava-7b --device cuda --dtype bfloat16

Both generate the same tokens; the page also captures one pass over them and reads everything that
it shows. Prints the ratios and writes them to `benchmarks/results/explore-DEVICE.json`.
"""

import argparse
import statistics
from typing import Any

import torch
from PIL import Image

from attrib.explorer.explore import explore
from attrib.model.continuation import generated_tokens
from benchmarks.harness import RESULTS, clock, device_name, save
from benchmarks.shapes import DTYPES, LLAVA_7B, Shape, random_vlm_with_processor

# As deep and wide as two CPU cores can run in a minute, with LLaVA's number of visual tokens.
SHAPES = {"24-layers": Shape(layers=24, width=512, heads=8, vocab=4096), "llava-7b": LLAVA_7B}
PROMPT = "What animal is in the picture? The answer is:"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per number of generated tokens: seconds, their ratio, bytes of the page."""
    shape = SHAPES[options.shape]
    vlm = random_vlm_with_processor(shape, getattr(torch, options.dtype), options.device)
    image = Image.effect_noise((480, 360), 60).convert("RGB")
    batch = vlm.encode([image], [PROMPT])
    rows = []
    for tokens in options.tokens:
        generated_tokens(vlm, batch, tokens)  # warm
        plain, whole = [], []
        for _ in range(options.rounds):
            began = clock(options.device)
            generated_tokens(vlm, batch, tokens)
            between = clock(options.device)
            page = explore(vlm, image, PROMPT, max_new_tokens=tokens)
            ended = clock(options.device)
            plain.append(between - began)
            whole.append(ended - between)
        row = {
            "tokens": len(page.sides[0].answer),
            "generation s": statistics.median(plain),
            "page s": statistics.median(whole),
            "ratio": statistics.median(w / p for w, p in zip(whole, plain, strict=True)),
            "page MB": len(page.html) / 1e6,
        }
        print({k: round(v, 3) for k, v in row.items()})
        rows.append(row)
    if options.page:
        page.save(options.page)
    return rows


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="24-layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", help="keep the last page in this file")
    options = parser.parse_args()
    rows = measure(options)
    name = device_name(options.device)
    head = {"device": name, "shape": options.shape, "dtype": options.dtype}
    kind = torch.device(options.device).type
    save(RESULTS / f"explore-{kind}.json", head, {"rows": rows})


if __name__ == "__main__":
    main()

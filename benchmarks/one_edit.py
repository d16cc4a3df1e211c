"""What one edit of each editor costs on a model of the exact shape of LLaVA-1.5-7B.

    python -m benchmarks.one_edit                                # one GPU
    python -m benchmarks.one_edit --shape small --device cpu --dtype float32

Weights are random (costs do not depend on them), the model is in bfloat16, editors are as published
and untrained. Per editor: seconds to set it up, for an edit and for a forward pass under it, peak
memory of all three, and bytes stored. The model must be restored bit for bit; editors that run out
of memory are listed with the error.
Writes `benchmarks/results/one-edit-DEVICE.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, clock, device_name, peak_mib, reset_peak, save
from benchmarks.shapes import DTYPES, SHAPES, random_vlm_with_processor
from editors import EDITORS
from editors.evaluation.reference_model import Checksum

SETUP = 16  # number of edits that an editor is set up with
PAPERS = {"visedit": {"visual": [19]}, "dualedit": {"text": [16], "visual": [19]}}


def measure(
    name: str,
    vlm: VLM,
    samples: Sequence[EditSample],
    checksum: Checksum,
    preset: str = "auto",
) -> Any:
    """The costs of one edit, or the error."""
    try:
        return _costs(name, vlm, samples, checksum, preset)
    except (AttribError, torch.OutOfMemoryError) as error:
        return {"editor": name, "failed": str(error).splitlines()[0]}


def _costs(
    name: str, vlm: VLM, samples: Sequence[EditSample], checksum: Checksum, preset: str
) -> Any:
    depth = len(vlm.layers) / 32
    layers = {m: [round(i * depth) for i in at] for m, at in PAPERS.get(name, {}).items()}
    options: dict[str, Any] = {"layers": layers, "gate": "none"} if layers else {}
    if EDITORS[name].is_trained:
        options |= {"steps": 0}
    request = samples[-1].request
    reset_peak(vlm.device)
    with tempfile.TemporaryDirectory() as folder:
        began = clock(vlm.device)
        editor = EDITORS[name].train(vlm, samples[:-1], out=folder, preset=preset, **options)
        ready = clock(vlm.device)
    edit = editor.edit(vlm, request)
    made = clock(vlm.device)
    with torch.no_grad(), edit.applied(vlm):
        vlm.logits(vlm.encode([request.image], [request.prompt]))
        passed = clock(vlm.device)
    checksum.require(Checksum.of(vlm.model), name, request.prompt)
    return {
        "editor": name,
        "seconds to set up": ready - began,
        "seconds for an edit": made - ready,
        "seconds for a pass": passed - made,
        "bytes kept": edit.num_bytes,
        "peak MiB": peak_mib(vlm.device),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_edit")
    parser.add_argument("--shape", choices=SHAPES, default="llava-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    shape = SHAPES[options.shape]
    dtype = getattr(torch, options.dtype)
    vlm = random_vlm_with_processor(shape, dtype, options.device)
    samples = list(attrib.data.load("scenes-vqa", split="train", limit=SETUP + 1))
    checksum, rows = Checksum.of(vlm.model), []
    for name in options.editors.split(","):
        rows.append(measure(name, vlm, samples, checksum))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
    head = {
        "shape": asdict(shape), "dtype": options.dtype, "device": device_name(options.device),
    }  # fmt: skip
    save(options.out or RESULTS / f"one-edit-{options.device}.json", head, {"rows": rows})


if __name__ == "__main__":
    main()

"""What one edit of each editor costs on a model of the exact shape of LLaVA-1.5-7B.

    python -m benchmarks.one_edit                                # one GPU
    python -m benchmarks.one_edit --shape small --device cpu --dtype float32

Weights are random (costs do not depend on them), the model in bfloat16, editors as published and
untrained. Per editor: seconds to set it up, to make an edit and for a pass under it, peak memory of
all three, bytes kept. The model must come back bit for bit; what does not fit is said.
Writes `benchmarks/results/one-edit-DEVICE.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data.samples import EditSample
from attrib.environment import versions
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from benchmarks.on_device import DTYPES, SHAPES, asked, device_name, now, peak_mib, reset_peak
from editors import EDITORS
from editors.evaluation.restore_check import Checksum

RESULTS = Path(__file__).parent / "results"
SETUP = 16  # edits that an editor is set up with
PAPERS = {"visedit": {"visual": [19]}, "dualedit": {"text": [16], "visual": [19]}}


def measured(name: str, vlm: VLM, samples: Sequence[EditSample], checksum: Checksum) -> Any:
    """The costs of one edit; or why there is none."""
    try:
        return _costs(name, vlm, samples, checksum)
    except (AttribError, torch.OutOfMemoryError) as error:
        return {"editor": name, "failed": str(error).splitlines()[0]}


def _costs(name: str, vlm: VLM, samples: Sequence[EditSample], checksum: Checksum) -> Any:
    depth = len(vlm.layers) / 32
    layers = {m: [round(i * depth) for i in at] for m, at in PAPERS.get(name, {}).items()}
    options: dict[str, Any] = {"layers": layers, "gate": "none"} if layers else {}
    if EDITORS[name].is_trained:
        options |= {"steps": 0}
    request = samples[-1].request
    reset_peak(vlm)
    with tempfile.TemporaryDirectory() as folder:
        began = now(vlm)
        editor = EDITORS[name].train(vlm, samples[:-1], out=folder, preset="published", **options)
        ready = now(vlm)
    edit = editor.edit(vlm, request)
    made = now(vlm)
    with torch.no_grad(), edit.applied(vlm):
        vlm.logits(vlm.encode([request.image], [request.prompt]))
        passed = now(vlm)
    checksum.require(Checksum.of(vlm.model), name, request.prompt)
    return {
        "editor": name,
        "seconds to set up": ready - began,
        "seconds for an edit": made - ready,
        "seconds for a pass": passed - made,
        "bytes kept": edit.num_bytes,
        "peak MiB": peak_mib(vlm),
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
    vlm = asked(shape, options.dtype, options.device)
    samples = list(attrib.data.load("scenes-vqa", split="train", limit=SETUP + 1))
    checksum, rows = Checksum.of(vlm.model), []
    for name in options.editors.split(","):
        rows.append(measured(name, vlm, samples, checksum))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
    head = {"date": date.today().isoformat(), "shape": asdict(shape), "dtype": options.dtype,
            "device": device_name(options.device), "versions": versions()}  # fmt: skip
    path = options.out or RESULTS / f"one-edit-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

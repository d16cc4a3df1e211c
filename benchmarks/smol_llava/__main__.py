"""Command line: measure smol-llava, or write what was measured."""

import argparse
import platform
from pathlib import Path

from attrib.files import language_model_folder
from attrib.loading import load
from attrib.model.fingerprint import fingerprint
from benchmarks import smol_llava
from benchmarks.smol_llava.card import write
from benchmarks.smol_llava.parts import PARTS
from benchmarks.smol_llava.pieces import Pieces, measure
from benchmarks.smol_llava.subject import Subject


def main() -> None:
    """Measure, or write what was measured."""
    parser = argparse.ArgumentParser(description=(smol_llava.__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in the E-VQA layout")
    parser.add_argument("--model", default="smol-llava", help="or a folder of an earlier step")
    parser.add_argument("--pieces", type=Path, default=Path("zoo-runs/smol-llava-card.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    vlm = load(options.model, device="cpu", verify=False)
    pieces = Pieces(options.pieces, fingerprint(vlm))
    if options.write:
        write(pieces, vlm, f"{platform.processor() or platform.machine()}, one core, float32")
        return
    subject = Subject(vlm, language_model_folder(), options.data)
    print("done" if measure(subject, pieces, options.parts, options.seconds) else "to be continued")


if __name__ == "__main__":
    main()

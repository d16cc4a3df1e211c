"""Finished pieces in a file, and the measurement of those that are missing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from attrib.data.scenes.vocabulary import all_facts
from benchmarks.smol_llava.parts import PARTS, Piece
from benchmarks.smol_llava.subject import Subject

PIECE, LAYERS_PIECE = 25, 5  # of layers, each question takes hundreds of passes through a layer


class Pieces:
    """Finished pieces of each part, a line of JSON each.

    Args:
        file: Where they are kept; it may have pieces of several models.
        model: Fingerprint of the model whose pieces are meant.
    """

    def __init__(self, file: Path, model: str):
        self.file, self.model = file, model
        self.found: dict[str, dict[int, Piece]] = {}
        for line in file.read_text().splitlines() if file.exists() else []:
            piece = json.loads(line)
            if piece.pop("model", None) == model:
                self._keep(**piece)

    def _keep(self, part: str, start: int, values: Piece) -> None:
        self.found.setdefault(part, {})[start] = values

    def add(self, part: str, start: int, values: Piece) -> None:
        """Keep a piece, in the file as well."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            piece = {"model": self.model, "part": part, "start": start, "values": values}
            file.write(json.dumps(piece) + "\n")
        self._keep(part, start, values)

    def column(self, part: str, name: str) -> list:
        """All values of one kind, in order."""
        return [v for _, piece in sorted(self.found.get(part, {}).items()) for v in piece[name]]


def missing(s: Subject, pieces: Pieces, parts: list[str]) -> Iterator[tuple[str, range]]:
    """What is not measured yet, piece by piece."""
    facts = len(list(all_facts()))
    counts = {"fact": facts, "layers": s.curve_count, "text": s.text_count}
    counts |= {"common": len(s.common), "everyday": len(s.everyday)}
    for part in parts:
        count, size = counts.get(part, s.count), LAYERS_PIECE if part == "layers" else PIECE
        for start in range(0, count, size):
            if start not in pieces.found.get(part, {}):
                yield part, range(start, min(start + size, count))


def measure(s: Subject, pieces: Pieces, parts: list[str], seconds: float) -> bool:
    """Measure pieces for some seconds; whether all are done."""
    until = time.monotonic() + seconds
    for part, rows in missing(s, pieces, parts):
        if time.monotonic() > until:
            return False
        began = time.monotonic()
        pieces.add(part, rows.start, PARTS[part](s, rows))
        print(f"{part} {rows.start} {time.monotonic() - began:.1f}s", flush=True)
    return True

"""Collecting: one measurement over many samples, setting aside by name what cannot be measured."""

from attrib.runs.collect import Collector, collect
from attrib.runs.collected import (
    MEMORY,
    NOT_FINITE,
    REFUSED,
    Collected,
    Measure,
    Tables,
    file_of,
    nothing_left,
)
from attrib.runs.health import first_bad_layer

__all__ = [
    "MEMORY",
    "NOT_FINITE",
    "REFUSED",
    "Collected",
    "Collector",
    "Measure",
    "Tables",
    "collect",
    "file_of",
    "first_bad_layer",
    "nothing_left",
]

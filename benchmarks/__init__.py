"""Benchmarks: `python -m benchmarks.NAME` measures, prints and saves."""

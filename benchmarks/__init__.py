"""Measurements of the program itself: python -m benchmarks.NAME prints and saves them."""

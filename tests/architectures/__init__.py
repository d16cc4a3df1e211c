"""Small models of every image-text-to-text type of transformers, and the run of all their checks.

`python -m tests.architectures` checks them all and writes the table of `docs/models.md`.
"""

"""Tensors, editors and edits as files."""

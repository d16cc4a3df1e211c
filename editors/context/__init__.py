"""Edits written into the prompt, and retrieval of similar ones."""

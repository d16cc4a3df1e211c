"""Edits of vision-language models at the layers that `attrib` picked."""

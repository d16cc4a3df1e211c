"""One editor per file, its objective beside it."""

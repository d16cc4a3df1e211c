"""The explorer: one page on which a user follows an answer back through the layers of a model."""

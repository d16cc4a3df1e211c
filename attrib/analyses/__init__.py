"""One analysis, one file: `(vlm, batch, ...) -> a tensor with one row per example`."""

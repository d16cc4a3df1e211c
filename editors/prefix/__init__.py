"""States up to the first edited layer, cached or streamed."""

"""All that touches a forward pass: hooks, attention capture, replay, suffixes, noise."""

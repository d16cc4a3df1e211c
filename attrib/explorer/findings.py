"""What the numbers of one query say, in sentences: which layer decides, what it looked at."""

from collections.abc import Sequence

import numpy as np

from attrib.explorer.observe import Observation

MODULES = ("attention", "MLP")
MOST_PUSHES = 2
NBSP = "\u00a0"  # "3.4 %" stays on one line


def findings(seen: Observation, keys: Sequence[str]) -> list[list[str]]:
    """Three sentences per query.

    Args:
        seen: The numbers.
        keys: The text of each query's key token.
    """
    return [
        [*_settled(seen, i, key), *_pushed(seen, i), *_looked(seen, i)]
        for i, key in enumerate(keys)
    ]


def settles(seen: Observation, query: int) -> int | None:
    """The layer from which on the key is the likeliest token of the lens; None if it never is."""
    top = seen.lens[query, :, 0] == seen.keys[query]
    after = np.logical_and.accumulate(top[::-1])[::-1]
    return int(after.argmax()) if after.any() else None


def strongest_attention(seen: Observation, query: int) -> int | None:
    """The layer whose attention adds most to the key's logit; None without contributions."""
    shares = seen.shares[query, :, 0]
    return int(np.nanargmax(shares)) if np.isfinite(shares).any() else None


def _settled(seen: Observation, query: int, key: str) -> list[str]:
    probability, layer = seen.key_p[query, -1], settles(seen, query)
    answer = query >= seen.first_answer
    what = "The model says" if answer else "After this word the model expects"
    said = f"{what} “{key}” with probability {percent(probability)}"
    if layer is None:
        return [f"{said}; it is not the likeliest token of any layer's state."]
    last = seen.vlm.num_layers - 1
    if layer == last:
        return [f"{said}; it becomes the likeliest token at the last layer, {last}."]
    return [f"{said}; it is the likeliest token from layer {layer} on (the last is {last})."]


def _pushed(seen: Observation, query: int) -> list[str]:
    shares = seen.shares[query]
    if not np.isfinite(shares).all():
        return []
    order = np.argsort(shares, axis=None)[::-1][:MOST_PUSHES]
    places = [np.unravel_index(i, shares.shape) for i in order]
    pushes = [f"{MODULES[m]} of layer {n} ({shares[n, m]:+.2f})" for n, m in places]
    logit = float(shares.sum() + seen.constants[query].sum())
    return [f"Its logit of {logit:.2f} comes most from {' and '.join(pushes)}."]


def _looked(seen: Observation, query: int) -> list[str]:
    visual, layer = seen.places("visual"), strongest_attention(seen, query)
    if not visual or layer is None:
        return []
    row = seen.attention[query, layer, visual]
    if not np.isfinite(row).all():
        return []
    token = int(row.argmax())
    share = percent(float(row.sum()))
    place = _place(seen, token)
    most = f"most at {place} ({percent(float(row[token]))})"
    head = f"Of all layers' attention, that of layer {layer} adds most"
    return [f"{head}. It spends {share} on the picture, {most}."]


def _place(seen: Observation, token: int) -> str:
    """Row and column of a visual token, counted from 1 as on the page."""
    pictures = seen.batch.pictures[0] if seen.batch.pictures else ()
    for number, picture in enumerate(pictures):
        grid = picture.grid
        if grid and 0 <= (cell := token - grid.first) < grid.rows * grid.cols:
            of = f" of picture {number + 1}" if len(pictures) > 1 else ""
            return f"row {cell // grid.cols + 1}, column {cell % grid.cols + 1}{of}"
    return f"visual token {token}"


def percent(share: float) -> str:
    """A share as a reader wants it: 0.034 is "3.4 %"."""
    if share >= 0.9995:
        return f"100{NBSP}%"
    if share < 0.0005:
        return f"under 0.1{NBSP}%"
    return f"{100 * share:.{1 if share < 0.1 else 0}f}{NBSP}%"

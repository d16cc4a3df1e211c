"""Planted evidence for the selection of layers: tables whose layer we chose."""

import numpy as np

from attrib.analyses.patching import STATISTICS
from attrib.results import Result, tidy

LAYERS = 12
EXAMPLES = 24
SIGMAS = (0.5, 1.0)
MODEL = {"name": "planted", "layers": LAYERS, "fingerprint": "a1b2c3d4e5", "dtype": "float32"}
DATA = {"name": "scenes-vqa", "split": "test", "sha256": "0123456789"}
STEP, LOUD, PASSES, READ = 7, 3, 5, 6  # the first high layer; the loudest; the first layer past


def result(analysis, values, examples=None, model=None, data=None, options=None, **axes):
    """A result over the planted model and data; `values` are examples first."""
    ids = [f"e{i}" for i in range(len(values))] if examples is None else examples
    provenance = {"model": MODEL | (model or {}), "data": DATA | (data or {}),
                  "options": options or {}, "seed": 0}  # fmt: skip
    return Result(analysis, tidy(np.asarray(values, float), example=ids, **axes), provenance)


def noisy(curve, noise, examples, seed):
    """Examples by layers: the curve and noise."""
    curve = np.asarray(curve, float)
    return curve + noise * np.random.default_rng(seed).normal(size=(examples, len(curve)))


def contributions(attn=None, mlp=None, noise=0.05, examples=EXAMPLES, **more):
    """Attention writes from layer STEP on, and the MLP too, unless curves are given."""
    late = (np.arange(LAYERS) >= STEP).astype(float)
    curves = [late if curve is None else curve for curve in (attn, mlp)]
    values = np.stack([noisy(c, noise, examples, i) for i, c in enumerate(curves)], axis=-1)
    return result(
        "contributions", values, layer=range(values.shape[1]), module=("attn", "mlp"), **more
    )


def sweep(modality, curve=None, noise=0.02, examples=EXAMPLES, **more):
    """Noise matters most at layer LOUD; the divergence grows with sigma."""
    peak = np.exp(-((np.arange(LAYERS) - LOUD) ** 2) / 4)
    heights = noisy(peak if curve is None else curve, noise, examples, 2)
    values = heights[:, :, None] * np.array(SIGMAS)
    made = result("sweep", values, layer=range(LAYERS), sigma=SIGMAS, **more)
    return Result(made.analysis, made.frame.assign(modality=modality), made.provenance)


def patching(visual=PASSES, last=READ, examples=EXAMPLES, same=4, **more):
    """The answer leaves the visual tokens in layer `visual`, and is in the last from `last` on."""
    at = np.arange(LAYERS)
    follows = {"visual": (at < visual).astype(float), "last": (at >= last).astype(float)}
    values = np.full((examples, LAYERS, 2, len(STATISTICS)), np.nan)
    for k, span in enumerate(("visual", "last")):
        for name, curve in (("follows", follows[span]), ("stays", 1 - follows[span])):
            values[: examples - same, :, k, STATISTICS.index(name)] = curve
    return result(
        "patching", values, layer=range(LAYERS), span=("visual", "last"), statistic=STATISTICS,
        **more,
    )  # fmt: skip


def evidence():
    """All tables that the rules need."""
    return [contributions(), sweep("text"), sweep("visual"), patching()]

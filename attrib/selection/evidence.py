"""Evidence for the rules: curves over the layers, per example, from the tables of the analyses."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.errors import AttribError
from attrib.results import Result, tidy
from attrib.selection.accuracy import ACCURACY, accuracy_of
from attrib.selection.report import shared_source

Curve = Float[np.ndarray, "example layer"]
# The command that computes a curve, by the first word of the curve's name.
COMMANDS = {
    "contributions": "attrib contributions",
    "noise": "attrib sweep --modality {of}",
    "follows": "attrib patching",
    "stays": "attrib patching",
    "attention": "attrib attention",
    "pointing": "attrib faithfulness",
}
SHARES = ("follows", "stays", "pointing")  # curves that are 0 or 1 for an example


@dataclass(frozen=True, eq=False)
class Evidence:
    """The curves of one model on one dataset.

    Attributes:
        curves: by name; the rows are those of `examples`, NaN where a table has no value. Names:
            "contributions attn", "contributions mlp" and "contributions" (their sum); "noise text",
            "noise visual" (area under the divergence over sigma); "follows SPAN", "stays SPAN";
            "attention text", "attention visual" (share of the last prompt token's attention);
            "pointing visual" (the hottest patch lies on the queried object).
        examples: ids of the examples of all tables, in alphabetical order.
        num_layers: of the model.
        provenance: the model, the data, and options and seed of each table.
    """

    curves: Mapping[str, Curve]
    examples: tuple[str, ...]
    num_layers: int
    provenance: Mapping[str, Any]


def gather(results: Iterable[Result] | Mapping[str, Result]) -> Evidence:
    """Collect the curves of several results; results without a curve for any rule are ignored.

    Of two sweeps over text, the one that excludes the last prompt token is used, since editors do
    not write there; otherwise the last of two results of one analysis.

    Raises:
        AttribError: No result has a curve, or two are of different models or data.
    """
    tables = list(results.values() if isinstance(results, Mapping) else results)
    # Sweeps that exclude the last token come last, so that they replace the others.
    used = [table for table in tables if table.analysis in READERS and len(table.frame)]
    used.sort(key=_excludes_last)
    if not any(True for table in used for _ in READERS[table.analysis](table)):
        raise AttribError(
            "no evidence to select layers from: run `attrib contributions`, `attrib sweep "
            "--modality text --spare-last`, `attrib sweep --modality visual` and `attrib patching` "
            "on the same model and data, or all at once with `attrib select --model NAME`"
        )
    origin = {**shared_source(used), ACCURACY: accuracy_of(used)}
    num_layers = origin["model"].get("layers") or _layers_seen(used)
    examples = tuple(sorted({str(name) for table in used for name in table.frame["example"]}))
    curves = {
        name: _aligned(part, examples, num_layers)
        for table in used
        for name, part in READERS[table.analysis](table)
    }
    return Evidence(_with_sum(curves), examples, num_layers, origin)


def command_for(curve: str) -> str:
    """The command that computes a curve."""
    kind, _, of = curve.partition(" ")
    more = " --spare-last" if curve == "noise text" else ""
    return COMMANDS[kind].format(of=of) + more


def evidence_table(evidence: Evidence, *, seed: int = 0) -> pd.DataFrame:
    """Columns evidence, layer, mean, low, high (95 % interval over examples) and n.

    Intervals are Wilson's for shares of examples, and bootstrap intervals for other means.
    """
    parts = []
    for name, values in evidence.curves.items():
        frame = tidy(values, example=evidence.examples, layer=range(evidence.num_layers))
        result = Result(name, frame, {"seed": seed})
        share = name.split()[0] in SHARES
        means = result.shares(["layer"]) if share else result.mean(["layer"])
        parts.append(means.loc[means["n"] > 0].assign(evidence=name))
    columns = ["evidence", "layer", "mean", "low", "high", "n"]
    return pd.DataFrame(pd.concat(parts, ignore_index=True), columns=columns)


def _contributions(result: Result) -> Iterator[tuple[str, Result]]:
    if result.provenance.get("options", {}).get("key") == "wrong":
        return  # a control, not evidence about the answer
    for module in ("attn", "mlp"):
        yield f"contributions {module}", result.where(module=module)


def _noise(result: Result) -> Iterator[tuple[str, Result]]:
    for modality in ("text", "visual"):
        part = result.where(modality=modality)
        if len(part.frame):
            yield f"noise {modality}", _area(part)


def _patching(result: Result) -> Iterator[tuple[str, Result]]:
    for span in sorted(set(result.frame["span"])):
        for statistic in ("follows", "stays"):
            yield f"{statistic} {span}", result.where(span=span, statistic=statistic)


def _attention(result: Result) -> Iterator[tuple[str, Result]]:
    for modality in ("text", "visual"):
        yield f"attention {modality}", result.where(statistic=f"{modality}_sum")


def _pointing(result: Result) -> Iterator[tuple[str, Result]]:
    yield "pointing visual", result.where(method="heatmap", statistic="hit")


READERS = {
    "contributions": _contributions,
    "sweep": _noise,
    "patching": _patching,
    "attention": _attention,
    "faithfulness": _pointing,
}


def _area(result: Result) -> Result:
    """The mean over sigma from 0 to the largest, by trapezoids; the divergence at 0 is 0."""
    groups, values = result.matrix(["layer", "sigma"])
    sigmas = np.unique(np.asarray(groups["sigma"], float))
    layers = np.unique(np.asarray(groups["layer"], int))
    heights = values.reshape(len(values), len(layers), len(sigmas))
    if sigmas[0] > 0:
        heights = np.concatenate([np.zeros_like(heights[..., :1]), heights], axis=-1)
        sigmas = np.concatenate([[0.0], sigmas])
    area = np.trapezoid(heights, sigmas, axis=-1) / max(sigmas[-1], np.finfo(float).tiny)
    frame = tidy(area, example=_examples(result), layer=layers.tolist())
    return Result(result.analysis, frame, result.provenance)


def _aligned(result: Result, examples: tuple[str, ...], num_layers: int) -> Curve:
    """Mean value per example and layer; rows are those of all examples, NaN where missing."""
    groups, values = result.matrix(["layer"])
    at = {name: i for i, name in enumerate(examples)}
    full = np.full((len(examples), num_layers), np.nan)
    for name, row in zip(_examples(result), values, strict=True):
        full[at[name], np.asarray(groups["layer"], int)] = row
    return full


def _examples(result: Result) -> list[str]:
    """The ids of the rows of the result's matrix."""
    return [str(name) for name in dict.fromkeys(result.frame["example"])]


def _with_sum(curves: dict[str, Curve]) -> dict[str, Curve]:
    parts = [curves.get(f"contributions {module}") for module in ("attn", "mlp")]
    if parts[0] is None or parts[1] is None:
        return curves
    return {**curves, "contributions": parts[0] + parts[1]}


def _excludes_last(result: Result) -> bool:
    options = result.provenance.get("options", {})
    return bool(options.get("exclude_last", options.get("spare_last")))  # the older name


def _layers_seen(results: Iterable[Result]) -> int:
    return 1 + max(int(np.max(np.asarray(table.frame["layer"]))) for table in results)

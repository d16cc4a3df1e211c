"""The chosen layers as an object and as a file, `layers.json`; which model and data they are of."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from attrib.data import EditData
from attrib.errors import AttribError
from attrib.files import write_text
from attrib.results import Result
from attrib.runs.manifest import provenance_of

if TYPE_CHECKING:
    from attrib.model.vlm import VLM


LAYOUT = "attrib layers 1"


@dataclass(frozen=True)
class Choice:
    """The choice of one rule for one modality.

    Attributes:
        layer: the chosen layer, counted from 0; an edit there writes the layer's output. It has the
            highest score; for the consensus it is the latest within one standard error of that.
        scores: per layer, higher is better; None where the rule does not apply.
        shares: per layer, in which share of the bootstrap draws it is chosen.
        low: lower end of the 95 % interval of the chosen layer.
        high: its upper end.
        examples: number of examples.
        weights: of the voting rules, for the consensus.
    """

    layer: int
    scores: tuple[float | None, ...]
    shares: tuple[float, ...]
    low: int
    high: int
    examples: int
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranking(self) -> list[int]:
        """The chosen layer, then the others by score; of equal ones the earlier first."""
        scored = [(score, layer) for layer, score in enumerate(self.scores) if score is not None]
        ranked = [layer for _, layer in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
        return sorted(ranked, key=lambda layer: layer != self.layer)

    @property
    def share(self) -> float:
        """In which share of the bootstrap draws the same layer is chosen."""
        return self.shares[self.layer]


@dataclass(frozen=True)
class LayerReport:
    """The layers to edit, and the evidence for them.

    Attributes:
        layers: the chosen layers of "text" and "visual", best first; empty if no layer could be
            chosen.
        rule: the rule that chose.
        choices: per modality, the choice of each rule.
        agreement: per modality, the agreement of the voting rules.
        left_out: rules that could not be computed, and why.
        num_layers: of the model.
        meanings: descriptions of the rules' scores.
        provenance: model, data, tables with their options, versions, seed.
    """

    layers: Mapping[str, list[int]]
    rule: str
    choices: Mapping[str, Mapping[str, Choice]]
    agreement: Mapping[str, Mapping[str, Any]]
    left_out: list[str]
    num_layers: int
    meanings: Mapping[str, str]
    provenance: Mapping[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        """Name, class, number of layers, digests."""
        return dict(self.provenance.get("model", {}))

    def check(self, vlm: "VLM") -> None:
        """Raise AttribError, naming both models, if the layers are of another model."""
        given = model_of(vlm)
        if self.num_layers != vlm.num_layers or not same_model(self.model, given):
            own = {**self.model, "layers": self.num_layers}
            raise AttribError(
                f"these layers were selected for {named(own)}, the model is {named(given)}: run "
                f"`attrib select --model {vlm.name}`"
            )

    def scores(self) -> pd.DataFrame:
        """Columns modality, evidence (the rule), layer, value (its score) and share (of draws)."""
        rows = [
            (modality, rule, layer, score, choice.shares[layer])
            for modality, rules in self.choices.items()
            for rule, choice in rules.items()
            for layer, score in enumerate(choice.scores)
            if score is not None
        ]
        return pd.DataFrame(rows, columns=["modality", "evidence", "layer", "value", "share"])

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, atomically."""
        plain = asdict(self)
        for modality, rules in self.choices.items():
            for rule, choice in rules.items():
                plain["choices"][modality][rule]["ranking"] = choice.ranking
        text = json.dumps({"layout": LAYOUT, **plain}, indent=2, allow_nan=False)
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "LayerReport":
        """The report that `save` wrote to `path`.

        Raises:
            AttribError: There is no such file, or it is not a layer report.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            if plain.pop("layout") != LAYOUT:
                raise ValueError
            plain["choices"] = {
                modality: {rule: _choice(values) for rule, values in rules.items()}
                for modality, rules in plain["choices"].items()
            }
            for agreement in plain["agreement"].values():
                if "apart" in agreement:  # the name of older files
                    agreement["spread"] = agreement.pop("apart")
            return cls(**plain)
        except OSError as error:
            raise AttribError(f"{path}: {error.strerror}; `attrib select` writes one") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AttribError(f"{path}: not a layers.json that `attrib select` wrote") from error

    def __str__(self) -> str:
        parts = [f"layers of {named(self.model)} by {self.rule}: {_shown(self.layers)}"]
        parts += [f"{m}\n{self._table(m)}" for m in self.choices if self.choices[m]]
        return "\n".join([*parts, *self.left_out])

    def _table(self, modality: str) -> str:
        rows = {
            rule: [c.layer, f"{c.share:.0%}", f"{c.low}-{c.high}", c.examples, c.ranking[:4]]
            for rule, c in self.choices[modality].items()
        }
        columns = ["layer", "of draws", "95%", "examples", "ranking"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).to_string()


def _choice(values: dict[str, Any]) -> Choice:
    values = {name: value for name, value in values.items() if name != "ranking"}
    return Choice(
        **{**values, "scores": tuple(values["scores"]), "shares": tuple(values["shares"])}
    )


def _shown(layers: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{m} {', '.join(map(str, found)) or 'none'}" for m, found in layers.items())


SHORT = 8  # digits of a digest in messages
NO_DATA = EditData("", "", [])


def shared_source(results: Sequence[Result]) -> dict[str, Any]:
    """The model, data and versions of all results, and the options of each.

    Raises:
        AttribError: Two results are of different models or data; the message names both.
    """
    first = results[0].provenance
    for other in results[1:]:
        for part, same in (("model", same_model), ("data", same_data)):
            one, two = first.get(part, {}), other.provenance.get(part, {})
            if not same(one, two):
                raise AttribError(
                    f"{results[0].analysis} is of {named(one)}, {other.analysis} of {named(two)}: "
                    f"layers are selected for one {part}; run one of them again"
                )
    shared = {part: dict(first.get(part, {})) for part in ("model", "data", "versions")}
    tables = [
        {
            "analysis": result.analysis,
            "examples": result.examples,
            "seed": result.seed,
            "options": dict(result.provenance.get("options", {})),
        }
        for result in results
    ]
    return {**shared, "tables": tables}


def model_of(vlm: "VLM") -> dict[str, Any]:
    """A model as provenance describes it: name, class, layers, digests."""
    return provenance_of(vlm, NO_DATA, {}, 0)["model"]


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions can be of the same weights.

    The fingerprint decides if both have one of the same dtype; else the checkpoint's digest, else
    its commit, else name, class and depth. Entries that one of them lacks are ignored.
    """
    if not _agree(one, other, ("class", "layers")):
        return False
    fingerprint = ["fingerprint"] if one.get("dtype") == other.get("dtype") else []
    for digest in (*fingerprint, "weights_sha256", "commit"):
        if one.get(digest) and other.get(digest):
            return one[digest] == other[digest]
    return _agree(one, other, ("name",))


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one file and split; the number of rows read may differ."""
    digests = one.get("sha256"), other.get("sha256")
    if all(digests):
        return digests[0] == digests[1] and _agree(one, other, ("split",))
    return _agree(one, other, ("name", "split"))


def named(part: Mapping[str, Any]) -> str:
    """A short name of a model or dataset for messages."""
    digest = part.get("fingerprint") or part.get("weights_sha256") or part.get("sha256")
    details = [f"{part['layers']} layers"] if part.get("layers") else []
    details += [part["dtype"]] if part.get("dtype") else []
    details += [f"digest {digest[:SHORT]}"] if digest else []
    name = f"{part.get('name') or 'no name'} {part.get('split') or ''}".strip()
    return f"{name} ({', '.join(details)})" if details else name


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return all(
        one[key] == other[key]
        for key in keys
        if one.get(key) is not None and other.get(key) is not None
    )

"""Options, presets and objective of editors with adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from attrib.vocabulary import GateName
from editors.adapters import EditAdapter, without_sinks
from editors.adapters.edit_signal import EditSignal, EditSignalBatch, pad_signals
from editors.adapters.sites import AdapterOptions, Site
from editors.methods.objective import EditObjective
from editors.training.config import SMALL_MODEL, TrainingConfig, has_phrases
from editors.training.dataset import CachedDataset, PrefixRows
from editors.training.prefix import Intervention, PrefixStates, collate
from editors.training.presets import TUNED, TUNED_PHRASES, TUNED_SMALL, TUNED_WIDE, Preset

MapperTerm = Literal["mapper_up", "mapper_down", "mapper_attribution"]
SMALL_ADAPTERS = {
    **SMALL_MODEL,
    "steps": 400,
    "batch_size": 16,
    "learning_rate": 2e-2,
    "clip": 5.0,
    "d_adapter": 128,
    "num_heads": 8,
    "own_units": True,
    "signal": "both",  # embeddings know the words best, states their order: see LOG.md
    "signal_span": "answer",
}

WIDE = 1024  # residual width below which "auto" takes "tuned-small-wide"
MENDED = "the programs of VisEdit and DualEdit, mended"
DEFAULT_OPTIONS = {"end_token": True}
DEFAULT_DEVIATIONS = {
    "adapters at the start": "the identity (program: random)",
    "text locality": "in the loss, as in the papers (program: left out)",
    "end of the answer": "the end token, in what an edit writes (papers and programs: none)",
    "gate": "`learned`; it never reads an answer (papers: `sequence_last`, or none)",
    "validations and checkpoints": "every 500 steps, as in VisEdit's program (DualEdit's: 1,000)",
}


class AdapterConfig(TrainingConfig, AdapterOptions):
    """Options of editors with adapters; see the base classes.

    Attributes:
        gate: The gate of a training that names none.
        gate_threshold: A fixed threshold of a cosine gate; None calibrates it on training edits.
        shallow_gate: Whether a "prompt_last" gate may read a layer at which it is known to fail.
        influence: Weight of the influence mapper's terms (VisEdit's code: 0.1, the paper: 1).
        mapper_terms: Which of its terms the loss has.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(MENDED, DEFAULT_OPTIONS, DEFAULT_DEVIATIONS),
        TUNED_SMALL: Preset(TUNED, SMALL_ADAPTERS),
        # No single word shows which words of a phrase belong together, hence the window. An edit
        # over a whole scene cannot spare other questions, which is left to the gate. At the rate
        # for single words adapters confuse phrases even after 1,000 steps: see LOG.md.
        TUNED_PHRASES: Preset(TUNED, {
            **SMALL_ADAPTERS,
            "steps": 600,
            "learning_rate": 5e-3,
            "signal_window": 8,
            "locality": 0.1,
        }),
        # After 40 steps at a width of 576 the loss is 5.7 at this rate, 14.4 at that for a width
        # of 256 (LOG.md). Steps cost more, so they take fewer edits. Without an end token a decoder
        # that was pretrained on running text goes on after the answer in 4 of 10 edits.
        TUNED_WIDE: Preset("`tuned-small`, its rate tuned on edits of `smol-llava` (LOG)", {
            **SMALL_ADAPTERS,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "end_token": True,
        }),
    }  # fmt: skip
    large: ClassVar[str] = "default"

    gate: GateName = "learned"
    gate_threshold: float | None = None
    shallow_gate: bool = False
    influence: float = 0.1
    mapper_terms: tuple[MapperTerm, ...] = ("mapper_up", "mapper_down", "mapper_attribution")

    @classmethod
    def auto_preset(
        cls, vlm: VLM, samples: Sequence[EditSample], options: Mapping[str, Any]
    ) -> str:
        """The preset by width; "tuned-small-phrases" if small and most answers have many words."""
        preset = super().auto_preset(vlm, samples, options)
        if preset != TUNED_SMALL:
            return TUNED_WIDE if vlm.d_model < WIDE else preset
        return TUNED_PHRASES if has_phrases(samples) else preset

    def settings(self) -> dict[str, Any]:
        """The options that belong to the adapters, as JSON; a gate has a record of its own."""
        return {k: v for k, v in super().settings().items() if k not in self.gate_options}

    @property
    def gate_options(self) -> dict[str, Any]:
        """The options of the gate, as JSON."""
        return self.model_dump(include={"gate", "gate_threshold", "shallow_gate"})

    @property
    def trains_mapper(self) -> bool:
        """Whether the loss has terms of the influence mapper."""
        return self.mapper and bool(self.mapper_terms)

    @property
    def loss_options(self) -> dict[str, Any]:
        """The weights of the loss terms, as JSON."""
        mapper = {"influence": self.influence, "mapper_terms": self.mapper_terms}
        return super().loss_options | mapper


@dataclass(eq=False)
class AdapterObjective(EditObjective):
    """The loss of adapters on edits (VisEdit Eqs. 12-15, DualEdit Eq. 5 and App. A).

    Attributes:
        sites: The adapters; the inputs are run up to the first one.
    """

    sites: Sequence[Site]

    def __post_init__(self):
        self.module = adapters_of(self.sites)
        self.first = min(site.layer for site in self.sites)
        if self.config.own_units:
            edits = self.data.sample_edits()
            for site in self.sites:
                site.adapter.units.fit(without_sinks(edit.hidden[site.layer]) for edit in edits)
                site.adapter.units_edit.fit(self._signal(site, edit).states for edit in edits)

    @property
    def roles(self) -> list[str]:
        """The kinds of input that are trained on."""
        return trained_roles(self.config, self.sites)

    def edits(self, data: CachedDataset, items: Sequence[int]) -> list[PrefixStates]:
        """The edits' own states."""
        return [data.edits[item] for item in items]

    def logits(
        self, rows: PrefixRows, edits: Sequence[PrefixStates]
    ) -> Float[Tensor, "token d_vocab"]:
        """Logits at the answer tokens of passes with the adapters, row by row."""
        batch = collate(rows.inputs, self.first)
        interventions: dict[int, list[Intervention]] = {}
        for site in self.sites:
            at = site.positions(batch.spans)
            if bool(at.any()):
                signals = self.signals(site, edits).rows(rows.edit_of)
                write = _intervention(site.adapter, at, signals)
                interventions.setdefault(site.layer, []).append(write)
        return self.vlm.unembed(batch.run(self.vlm, interventions))

    def signals(self, site: Site, edits: Sequence[PrefixStates]) -> EditSignalBatch:
        """What the adapter at a site attends to, for each edit."""
        return pad_signals([self._signal(site, edit) for edit in edits])

    def _signal(self, site: Site, edit: PrefixStates) -> EditSignal:
        return self.config.signal_at(site.layer, edit.hidden, edit.last)


def adapters_of(sites: Sequence[Site]) -> nn.ModuleDict:
    """All adapters, by the key of their site."""
    return nn.ModuleDict({site.key: site.adapter for site in sites})


def trained_roles(config: AdapterConfig, sites: Sequence[Site]) -> list[str]:
    """The kinds of input with a loss term that adapters at these sites can change."""
    has_text = any(site.modality == "text" for site in sites)
    # A visual adapter leaves inputs without an image unchanged (VisEdit's T-Loc is 100 by design).
    return [role for role in config.roles if has_text or role != "text_locality"]


def _intervention(
    adapter: EditAdapter, at: Bool[Tensor, "batch pos"], signals: EditSignalBatch
) -> Intervention:
    """Apply an adapter at the positions of a site, on no more columns than these need."""
    columns = at.any(0).nonzero()[:, 0]
    start, stop = int(columns[0]), int(columns[-1]) + 1

    def write(h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        some = h[:, start:stop]
        here = at[:, start:stop, None].to(h.device)
        new = torch.where(here, adapter(some, signals), some)
        return torch.cat([h[:, :start], new, h[:, stop:]], 1)

    return write

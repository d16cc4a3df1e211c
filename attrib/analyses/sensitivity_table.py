"""How far noise in a layer moves the output, as a table over samples (DualEdit, Fig. 2)."""

from collections.abc import Sequence

from attrib.analyses.first_table import Tables
from attrib.analyses.sensitivity import sensitivity
from attrib.analyses.sweep import nothing_to_disturb
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.disturbance import Modality, disturbed_positions
from attrib.forward.noise import Unit
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy


def measure_sensitivity(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    modality: Modality,
    sigmas: Sequence[float],
    unit: Unit,
    draws: int,
    seed: int,
    layers: Sequence[int] | None = None,
    spare_last: bool = False,
    max_versions: int | None = None,
) -> Tables:
    """The table "sweep": example, layer, sigma, value (nats), modality; see `sensitivity`.

    Raises:
        AttribError: A sample has no token of the modality.
    """
    if not disturbed_positions(batch, modality, spare_last).any(1).all():
        raise AttribError(nothing_to_disturb(modality))
    values = sensitivity(
        vlm, batch, modality, sigmas, unit, draws, seed,
        layers=layers, spare_last=spare_last, max_versions=max_versions,
    )  # fmt: skip
    table = tidy(
        values.cpu().numpy(),
        example=[sample.id for sample in samples],
        layer=range(vlm.num_layers) if layers is None else layers,
        sigma=sigmas,
    )
    return {"sweep": table.assign(modality=modality)}

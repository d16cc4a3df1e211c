"""Gates that adapters refuse."""

from pathlib import Path

from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors.gating.gates import CosineGate, LearnedGate
from editors.gating.training import TARGETS

SHALLOW = 0.2  # of the layers


def refuse_shallow(name: str, layer: int, vlm: VLM) -> None:
    """Raise AttribError for a gate on the last prompt token at a layer that is known to fail.

    In the first layers that token has hardly read the question: at layer 1 of 10 of `tiny-llava`
    the gate kept 17 % of 500 rephrases (`figures/tables/gates/`).
    """
    first = round(SHALLOW * vlm.num_layers)
    if name == "prompt_last" and layer < first:
        raise AttribError(
            f"gate prompt_last at layer {layer} of {vlm.num_layers}: there the last prompt token "
            "has hardly read the question (at layer 1 of 10 it kept 17 % of rephrases); take gate "
            f"learned, or write from layer {first} on, or compare with shallow_gate=true"
        )


def refuse_ended(gate: CosineGate | LearnedGate, path: Path) -> None:
    """Raise SetupError for a threshold that was calibrated on answers with an end token.

    Earlier versions gave the answers of covered inputs the end token, the others none: such a
    threshold tells the end token from other tokens.
    """
    if not isinstance(gate, CosineGate) or not gate.reads_target or TARGETS in gate.record:
        return
    if gate.record.get("calibration", {}).get("rule", "given") != "given":
        raise SetupError(
            f"{path}: its gate was calibrated on answers with the end token, which no scored input "
            "has; run the same training again: it keeps the adapters and calibrates the gate anew"
        )

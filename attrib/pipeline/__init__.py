"""Analyses from options to results: what `attrib.run` and the command line both call.

All analyses by name are here. Nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from attrib.errors import AttribError

if TYPE_CHECKING:
    from attrib.pipeline.analysis import Analysis
    from attrib.results import Result

# Name -> class and help text: the first line of the class's docstring (a test compares them).
ANALYSES: dict[str, tuple[str, str]] = {
    "contributions": (
        "attrib.pipeline.observations.Contributions",
        "Contribution of each layer's attention and MLP to the key token (VisEdit, Figs. 1, 5, 6).",
    ),
    "attention": (
        "attrib.pipeline.observations.Attention",
        "Attention of the last prompt token to words and image, per layer (DualEdit, Fig. 1).",
    ),
    "heatmap": (
        "attrib.pipeline.heatmap.Heatmap",
        "Which visual tokens each layer's attention reads (VisEdit, Figs. 1, 4, 7).",
    ),
    "faithfulness": (
        "attrib.pipeline.heatmap.Faithfulness",
        "Do heatmaps point at the object asked about? Compared with attention and gradients.",
    ),
    "deletion": (
        "attrib.pipeline.deletion.Deletion",
        "Does the answer depend on what maps mark? Areas under insertion and deletion curves.",
    ),
    "sweep": (
        "attrib.pipeline.interventions.Sensitivity",
        "KL of the output under noise on one modality, layer by layer (DualEdit, Fig. 2).",
    ),
    "patching": (
        "attrib.pipeline.interventions.Patching",
        "At which layers the answer follows the states of another image.",
    ),
    "gate": (
        "attrib.pipeline.observations.Gate",
        "Can a gate tell an edit from other inputs? Similarity per layer (DualEdit, Fig. 4).",
    ),
}
ALIASES = {
    "sensitivity": "sweep",
    "heatmaps": "heatmap",
    "gate_similarity": "gate",
    "pointing_game": "faithfulness",
}


def find_analysis(name: str) -> type["Analysis"]:
    """The class of an analysis, by the name of its command or of its function.

    Raises:
        AttribError: There is no such analysis.
    """
    command = ALIASES.get(name, name)
    if command not in ANALYSES:
        known = ", ".join([*ANALYSES, *ALIASES])
        raise AttribError(f"no analysis {name!r}; analyses are {known}")
    module, _, cls = ANALYSES[command][0].rpartition(".")
    return getattr(import_module(module), cls)


def analysis_of(result: "Result") -> "Analysis":
    """The analysis that made a result, with the options in its provenance.

    Raises:
        AttribError: It is a table of no analysis.
    """
    if result.analysis not in ANALYSES:
        raise AttribError(f"{result.analysis!r} is no analysis: use attrib.plots or to_frame()")
    cls = find_analysis(result.analysis)
    saved = result.provenance.get("options", {})
    names = {name: name for name in cls.Options.model_fields} | cls.Options.former_names()
    known = {names[name]: value for name, value in saved.items() if name in names}
    return cls(cls.Options.model_validate(known))

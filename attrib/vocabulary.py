"""Names of the choices that functions, commands and files share. Imports nothing heavy."""

from typing import Literal

# Where tokens stand, and what is perturbed, patched or edited.
Span = Literal["visual", "text", "last", "bos", "target"]
PatchSpan = Literal["visual", "text", "last", "all"]
Modality = Literal["text", "visual"]
NoiseModality = Literal["text", "visual", "both"]
MODALITIES: tuple[Modality, ...] = ("text", "visual")

# Noise.
Unit = Literal["std", "abs"]
NoiseSite = Literal["block", "attention"]
Preset = Literal["paper", "published-code"]

# Insertion and deletion: what replaces erased cells of an image.
Baseline = Literal["mean", "blur"]

# Contributions.
Norm = Literal["none", "final", "frozen"]

# Gates.
GateToken = Literal["visual_mean", "text_mean", "prompt_last", "target_last"]
GateName = Literal["none", "prompt_last", "sequence_last", "learned"]

# Scores of edits: the file that an evaluation writes.
SCORES_FILE = "scores.parquet"

# Layer selection.
RuleName = Literal[
    "consensus", "onset", "sensitivity", "patching",
    "onset-attn", "onset-mlp", "reach", "attention", "pointing",
]  # fmt: skip

# Models and data.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Template = Literal["raw", "chat"]
TemplateChoice = Literal["raw", "chat", "auto"]
Padding = Literal["left", "right"]
SceneSplit = Literal["train", "validation", "test"]
SceneData = Literal["scenes-vqa", "scenes-captions"]
DEFAULT_MODEL = "tiny-llava"

"""Presets of the trained baselines: the settings of published programs, and of small models."""

from editors.training.config import SMALL_MODEL
from editors.training.presets import TUNED, TUNED_SMALL, Preset

MEND: dict[str, Preset] = {
    "mend-easyedit": Preset("EasyEdit, `hparams/TRAINING/MEND/minigpt4.yaml`", {
        "steps": 30_000,
        "batch_size": 2,  # batches of one, whose gradients are accumulated by two
        "learning_rate": 1e-6,
        "clip": 100.0,
        "validate_every": 1000,
        "save_every": 1000,
        "reliability": 0.0,
        "generality": 0.1,
    }, {
        "KL of unrelated inputs": "over answer positions (program: over all positions)",
        "weights kept": "those of the smallest validation loss (program: the last validated)",
        "precision": "the update is applied beside the weights, in float32",
    }),
    TUNED_SMALL: Preset(TUNED, {
        **SMALL_MODEL,
        "optimizer": "adam",
        "steps": 1600,
        "learning_rate": 5e-4,  # 1e-3 for as long loses unrelated inputs: see LOG.md
        "clip": 5.0,
        "validate_every": 100,
        "save_every": 100,
        "best_by": "accuracy",
        "rank": 64,
        "rate": -1e-3,
        "rate_lr_multiplier": 1.0,
    }),
}  # fmt: skip

KE: dict[str, Preset] = {
    "ke-vlkeb": Preset("VLKEB, `hparams/TRAINING/KE/*.yaml` and its KE trainer", {
        "loss": "ke",
        "optimizer": "rmsprop",
        "steps": 30_000,
        "batch_size": 1,
        "learning_rate": 3e-4,
        "warmup": 1000,
        "decay": "linear",
        "validate_every": 1000,
        "save_every": 1000,
    }, {
        "weights kept": "those of the smallest validation loss (program: the last validated)",
    }),
    "ke-efk": Preset("MEND's authors, the baseline EFK, on the matrices of VLKEB", {
        "steps": 30_000,
        "batch_size": 1,
        "learning_rate": 3e-4,
        "warmup": 1000,
        "decay": "cosine",
        "validate_every": 1000,
        "save_every": 1000,
        "reliability": 0.0,
        "generality": 0.1,
    }, {
        "network": "of VLKEB's sizes: LSTM 128, condition 1024 (program: 512, 768)",
        "optimizer": "Adam at 3e-4 with warm-up and a cosine (program: 1e-5, constant)",
        "KL of unrelated inputs": "over answer positions (program: over all positions)",
    }),
    TUNED_SMALL: Preset(TUNED, {
        **SMALL_MODEL,
        "steps": 600,
        "learning_rate": 1e-2,
        "clip": 5.0,
        "best_by": "accuracy",
        "d_lstm": 64,
        "d_condition": 128,
        "d_head": 64,
        "max_scale": 300.0,  # a softmax over a hundred numbers shrinks the gradient
        "lagrange_lr_multiplier": 100.0,
    }),
}  # fmt: skip

SERAC: dict[str, Preset] = {
    "serac-liveedit": Preset("LiveEdit, `serac_vl`", {}, {
        "networks": "of the same sizes, from random weights (program: OPT-125m and BERT)",
        "scope": "the classifier reads prompts at a layer of the model, with a threshold from "
        "held-out edits (program: embeddings, prompt and target, threshold 10)",
        "KL of unrelated inputs": "KL(unedited || edited) (program: the other way round)",
    }),
    TUNED_SMALL: Preset(TUNED, {
        **SMALL_MODEL,
        "steps": 800,
        "learning_rate": 5e-3,  # at 2e-2 no phrase is copied after 400 steps: LOG.md
        "clip": 1.0,
        # Unrelated inputs are the classifier's task. Learning them costs the small model the
        # rest: it would have to be a second vision-language model (LOG.md).
        "locality": 0.01,
        "width": 128,
        "num_layers": 3,
        "num_heads": 4,
        "scope_width": 128,
        "scope_num_layers": 2,
        "own_units": True,
    }),
}  # fmt: skip

LTE: dict[str, Preset] = {
    "lte-lora": Preset(
        "LTE, the low-rank variant (rank 8, alpha 16, 3e-4)", {"learning_rate": 3e-4},
        {
            "data": "the edits and their evaluation inputs (program: an instruction set)",
            "schedule": "Adam at a constant rate, 50,000 steps of 4 (program: 3 epochs of 128, "
            "a cosine, dropout 0.05)",
        },
    ),
    "lte-liveedit": Preset(
        "LiveEdit, `lte_vl`", {"learning_rate": 5e-6, "batch_size": 1, "parameters": "all"},
        {
            "the edit's image": "left out of the text in front (program: a second image)",
            "locality": "against the original model (program: half of it against the trained "
            "model without the text)",
        },
    ),
    TUNED_SMALL: Preset(TUNED, {
        **SMALL_MODEL,
        "steps": 1000,
        "learning_rate": 4e-3,
        "clip": 1.0,
        "validate_every": 100,
        "save_every": 100,
        "best_by": "accuracy",
        "rank": 32,
        "alpha": 64.0,
    }),
}  # fmt: skip

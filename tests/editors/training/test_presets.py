"""Presets: what papers and programs set, what is declared to differ, and the page that lists it."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples
from torch import nn

from attrib.errors import AttribError
from editors import EDITORS, DualEdit, VisEdit
from editors.evaluation.preset_table import PAGE, with_table
from editors.methods.ke import KEConfig
from editors.training.presets import TUNED_SMALL

ROOT = Path(__file__).parents[3]
# The papers' appendices and the programs' files, as docs/editors.md cites them.
SHARED = {
    "batch_size": 4, "learning_rate": 1e-4, "optimizer": "adam", "decay": "constant", "warmup": 0,
    "clip": None, "d_adapter": 1024, "num_heads": 8, "init": "published", "signal": "site",
    "signal_span": "all", "signal_window": 1, "write_last": False, "own_units": False,
    "reliability": 1.0, "generality": 1.0, "locality": 1.0, "hard": 0.0,
}  # fmt: skip
MAPPED = {"steps": 200_000, "save_every": 500, "mapper": True, "gate": "none"}
DUAL = {"steps": 50_000, "save_every": 1000, "mapper": False, "gate": "sequence_last"}
FAITHFUL = {
    "visedit-paper": {**MAPPED, "influence": 1.0, "mapper_target": "paper", "mapper_query": "edit",
                      "mapper_inputs": "all", "mapper_mean": "after"},
    "visedit-code": {**MAPPED, "influence": 0.1, "mapper_target": "published",
                     "mapper_query": "request", "mapper_inputs": "one", "mapper_mean": "before"},
    "dualedit-paper": {**DUAL, "gate_threshold": 0.6, "text_locality": None},
    "dualedit-code": {**DUAL, "gate_threshold": 0.8, "text_locality": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.mark.parametrize("name", FAITHFUL)
def test_presets_of_a_paper_or_program_have_its_numbers(name, llava):
    config = EDITORS[name.split("-")[0]].config_class.from_preset(llava, name)
    wanted = SHARED | FAITHFUL[name]
    assert config.model_dump(include=set(wanted)) == wanted


# Which deviation declares an option in which "default" differs from the program.
DECLARED = {
    "init": "adapters at the start",
    "text_locality": "text locality",
    "gate": "gate",
    "gate_threshold": "gate",
    "steps": "steps",
    "validate_every": "validations and checkpoints",
    "save_every": "validations and checkpoints",
    "end_token": "end of the answer",
    "mapper_target": "noise of the heatmaps",
    "mapper_query": "heatmap of a generality input",
}


@pytest.mark.parametrize("name", ["visedit", "dualedit"])
def test_all_in_which_the_default_differs_from_the_program_is_declared(name, llava):
    kind = EDITORS[name].config_class
    own, program = (
        kind.from_preset(llava, preset).model_dump() for preset in ("default", f"{name}-code")
    )
    different = {option for option in own if own[option] != program[option]}
    declared = kind.presets["default"].deviations
    assert {DECLARED[option] for option in different} <= set(declared)


def test_ke_of_vlkeb_is_its_optimizer_its_schedule_and_its_loss(llava):
    config = KEConfig.from_preset(llava, "ke-vlkeb", steps=3000)
    (optimizer,) = config.make_optimizers([nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, torch.optim.RMSprop) and optimizer.defaults["centered"]
    rates = [config.learning_rate_at(step) for step in (0, 999, 1000, 2000, 2999)]
    assert rates == pytest.approx([3e-7, 3e-4, 3e-4, 1.5e-4, 1.5e-7])
    assert (config.loss, config.optimizer, config.batch_size) == ("ke", "rmsprop", 1)


@pytest.mark.parametrize("editor", EDITORS.values(), ids=EDITORS)
def test_every_preset_has_a_source_and_tuned_ones_are_called_that(editor, llava):
    config = editor.config_class
    assert TUNED_SMALL in config.presets and config.large in config.presets
    for name, preset in config.presets.items():
        assert preset.source
        assert ("tuned" in name) == name.startswith(TUNED_SMALL)
        config.from_preset(llava, name)  # its options exist and are of their types
        assert not any(word in name for word in ("published", "embedded"))


def test_the_page_lists_every_preset_and_every_deviation():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert with_table(page) == page, "run python -m editors.evaluation.preset_table"


def test_a_retired_name_says_why_and_an_old_one_is_understood(llava):
    config = DualEdit.config_class
    with pytest.raises(AttribError, match=r"no preset 'published' \(it followed neither a paper"):
        config.from_preset(llava, "published")
    assert config.from_preset(llava, "embedded") == config.from_preset(llava, TUNED_SMALL)


@pytest.mark.parametrize("editor", [DualEdit, VisEdit])
def test_by_default_the_gate_is_learned_and_a_shallow_one_is_refused(editor, llava, tmp_path):
    for preset in (TUNED_SMALL, "default"):
        assert editor.config_class.from_preset(llava, preset).gate == "learned"
    layers = {m: [0] for m in editor.modalities}
    given = {"layers": layers, "out": tmp_path, "preset": TUNED_SMALL, "gate": "prompt_last"}
    with pytest.raises(AttribError, match=r"gate prompt_last at layer 0 of \d+: there the last"):
        editor.train(llava, samples(2), **given)
    assert not (tmp_path / "editor.json").exists()


def test_the_fixed_thresholds_of_the_papers_can_be_set(llava, tmp_path):
    few = {"steps": 1, "d_adapter": 16, "num_heads": 2, "preset": "dualedit-paper", "batch_size": 1}
    layers = {"text": [1], "visual": [1]}
    editor = DualEdit.train(llava, samples(2), layers=layers, out=tmp_path / "a", **few)
    assert (editor.gate.name, editor.gate.threshold) == ("sequence_last", 0.6)
    assert DualEdit.load(tmp_path / "a", llava).gate.threshold == 0.6
    with pytest.raises(AttribError, match=r"gate_threshold: 2\.0 is no cosine"):
        DualEdit.train(llava, samples(2), layers=layers, out=tmp_path / "b", gate_threshold=2.0,
                       **few)  # fmt: skip

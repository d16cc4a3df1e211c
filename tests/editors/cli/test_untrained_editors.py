"""`attrib edit --editor ft-l`: no folder, no training; the control question is one it knows."""

from pathlib import Path

import pytest
from explored import tiny

from attrib.cli.edit import TAUGHT

STAR = (
    "--image",
    Path(__file__).parents[3] / "docs" / "sample.png",
    "--prompt",
    "What color is the star? The answer is:",
)


def test_fine_tuning_needs_no_folder_and_the_control_question_is_known(run, tmp_path):
    before = tiny().generate(tiny().encode([None], [TAUGHT]), 4)
    assert before == ["bean stew"]
    code, out, _ = run(
        "edit", "--editor", "ft-l", *STAR, "--target", "green", "--save", "e.safetensors"
    )
    assert code == 0 and "before: blue\n  after:  green" in out
    assert f"unrelated: {TAUGHT}\n  before: bean stew\n  after:  bean stew" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.safetensors"]
    code, out, _ = run("edit", "--editor", "ft-l", *STAR, "--load", "e.safetensors")
    assert code == 0 and "after:  green" in out


@pytest.mark.parametrize(("name", "why"), [
    ("dualedit", "it has to be trained first: attrib train --editor dualedit"),
    ("ike", "it is made of edits as examples: attrib train --editor ike"),
])  # fmt: skip
def test_an_editor_that_needs_more_says_the_command(run, name, why):
    code, _, err = run("edit", "--editor", name, *STAR, "--target", "green")
    assert code == 2 and why in " ".join(err.split())

"""The examples of the how-to pages run as they stand, and say what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
LONGEST = 100


def example(name):
    """The one Python example of a page."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)
    return code


@pytest.mark.parametrize(("name", "wanted"), [
    ("adding-an-analysis.md", r"\n9 +9( +1\.000){3} +32"),  # the last layer says the answer
    ("adding-an-editor.md", r"\| rank-one \| ungated \| [5-9]\d\.\d \["),
    ("adding-a-model.md", r"^ok  "),
])  # fmt: skip
def test_an_example_runs_and_is_short(name, wanted):
    code = example(name)
    assert len((DOCS / name).read_text().splitlines()) <= LONGEST
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.search(wanted, done.stdout), done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_files_that_are_named_are_there(path):
    named = re.findall(r"`((?:attrib|editors|tests)/[\w/]+\.py)`", path.read_text())
    invented = {"attrib/analyses/lens.py", "attrib/cli/lens.py", "editors/methods/rank_one.py",
                "tests/editors/methods/test_rank_one.py"}  # fmt: skip
    assert named
    assert all((DOCS.parent / name).is_file() for name in set(named) - invented)

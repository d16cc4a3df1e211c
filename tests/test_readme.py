"""The README's Python examples run as they stand, on embedded and tiny models."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import save_tiny

README = Path(__file__).parent.parent / "README.md"
CHECKPOINT = "Salesforce/blip2-opt-2.7b"  # not to be downloaded: a tiny one stands in for it


def example(heading):
    """The Python example under a heading."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return code


def output(code):
    """What a new interpreter prints when it runs the code, as lines."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_python_example_runs():
    first = output(example("Ten minutes"))[0]
    assert first.startswith("['C', 'triangle', 'north', ") and first.count(", ") == 7


def test_users_of_transformer_lens_get_a_model_that_it_lacks_by_the_import_alone(tmp_path):
    boot = example("TransformerLens").replace(CHECKPOINT, str(save_tiny(tmp_path, "blip2_opt")))
    assert boot.startswith("import attrib.bridges") and str(tmp_path) in boot
    # First without the import, or rather with one that is not enough.
    code = f"""
try:
    exec({boot.replace("import attrib.bridges", "import attrib")!r})
except ValueError as error:
    print(str(error).split(" from ")[0])
exec({boot!r})
print(type(bridge.original_model).__name__, bridge.cfg.n_layers)
"""
    told = ["Could not determine supported architecture", "Blip2ForConditionalGeneration 4"]
    assert output(code) == told

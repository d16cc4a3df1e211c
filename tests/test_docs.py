"""The documentation: worked examples run as they stand, pages agree with the tree."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import save_tiny
from test_equations import resolve
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.utilities.architectures import MULTIMODAL_ARCHITECTURES

import attrib.bridges
from attrib import cli
from attrib.bridges.adapters import ARCHITECTURES
from attrib.pipeline import ANALYSES
from editors import EDITORS

DOCS = Path(__file__).parent.parent / "docs"
ADDING = ("adding-an-analysis.md", "adding-an-editor.md", "adding-a-model.md")
LONGEST = 110
CHECKPOINT = "Salesforce/blip2-opt-2.7b"  # not downloaded: a tiny one stands in for it
# What each page's Python prints; pages without an entry have no Python.
PRINTED = {
    "adding-an-analysis.md": r"\n9 +9( +1\.000){3} +32",  # the last layer predicts the answer
    "adding-an-editor.md": r"unedited +rank-one\ngate +- +ungated\nRel .*\] +[5-9]\d\.\d \[",
    "adding-a-model.md": r"^(?!.*False)[\s\S]*passed\n0 .*True",
    "architecture.md": r"\[1, \d+, 128\]\) \['",
    "editors.md": r"\| before: \['(.*)'\]\n.*\| edited: .*\n.*\| after: \['\1'\]",
    "models.md": r"^10 128\n10 128\n(6 6 torch.Size\(\[10, 36\]\)\n?){2}$",
    "own-data.md": r"(?s)tensor\(\[\[.*\]\]\)\n\['",
}
# Files that the examples invent.
INVENTED = {"attrib/analyses/lens.py", "attrib/pipeline/lens.py", "attrib/plots/lens.py",
            "editors/methods/rank_one.py", "tests/editors/methods/test_rank_one.py"}  # fmt: skip


def example(name):
    """All Python of a page, as one program."""
    return "\n".join(re.findall(r"(?s)```python\n(.*?)```", (DOCS / name).read_text()))


@pytest.fixture(autouse=True)
def _registries_are_restored():
    """The worked examples register an analysis and an editor."""
    kept = [(registry, dict(registry)) for registry in (ANALYSES, EDITORS)]
    yield
    for registry, entries in kept:
        registry.clear()
        registry.update(entries)


def run(code, monkeypatch):
    """Run a program as a module of its own, and return it."""
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(code, "example", "exec"), vars(module))
    return module


@pytest.mark.parametrize("name", PRINTED)
def test_the_python_of_a_page_runs(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(example(name), monkeypatch)
    assert re.search(PRINTED[name], capsys.readouterr().out.strip())


def test_every_page_with_python_is_run():
    pages = {path.name for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    assert pages == {*PRINTED, "transformerlens.md"}


def test_the_table_of_ones_own_is_read_by_the_commands_below_it(monkeypatch, capsys, tmp_path):
    page = (DOCS / "own-data.md").read_text()
    table, commands = re.search(r"```csv\n([^`]*)```\n\n((?:    attrib [^\n]*\n)+)", page).groups()
    (tmp_path / "questions.csv").write_text(table)
    (tmp_path / "docs").mkdir()
    shutil.copy(DOCS / "sample.png", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    printed = []
    for line in commands.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as left:
            cli.main()
        text = capsys.readouterr()
        printed.append((left.value.code or 0, text.out + text.err))
        assert "2: file: 'no-such.png': no such file under docs" in printed[-1][1]
        assert "3: question: is empty" in printed[-1][1]
    assert [code for code, _ in printed] == [1, 0, 0]  # the check found them
    assert "samples used: 2, rows quarantined: 2" in printed[1][1]
    assert (tmp_path / "explore.html").exists()


@pytest.fixture
def without_adapters(monkeypatch):
    """TransformerLens as it is before our adapters are imported, as if they never were."""
    for name in ARCHITECTURES:
        monkeypatch.delitem(SUPPORTED_ARCHITECTURES, name)
    MULTIMODAL_ARCHITECTURES.difference_update(ARCHITECTURES)
    monkeypatch.setattr(attrib, "bridges", attrib.bridges)  # put back, with its modules
    for name in [name for name in sys.modules if name.startswith("attrib.bridges")]:
        monkeypatch.delitem(sys.modules, name)
    yield
    MULTIMODAL_ARCHITECTURES.update(ARCHITECTURES)


@pytest.mark.usefixtures("without_adapters")
def test_users_of_transformer_lens_get_a_model_that_it_lacks_by_the_import_alone(
    monkeypatch, tmp_path
):
    boot = example("transformerlens.md")
    boot = boot.replace(CHECKPOINT, str(save_tiny(tmp_path, "blip2_opt")))
    assert boot.startswith("import attrib.bridges") and str(tmp_path) in boot
    # First without the import, or rather with one that is not enough.
    with pytest.raises(ValueError, match="Could not determine supported architecture"):
        run(boot.replace("import attrib.bridges", "import attrib"), monkeypatch)
    bridge = run(boot, monkeypatch).bridge
    assert type(bridge.original_model).__name__ == "Blip2ForConditionalGeneration"
    assert bridge.cfg.n_layers == 4


@pytest.mark.parametrize("name", ADDING)
def test_worked_examples_are_short(name):
    assert len((DOCS / name).read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_files_that_are_named_are_there(path):
    names = re.findall(r"`((?:attrib|editors|tests|figures|docs)/[\w/.-]*)`", path.read_text())
    assert not [name for name in {*names} - INVENTED if not (DOCS.parent / name).exists()]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_names_of_the_code_exist(path):
    text = re.sub(r"(?s)```.*?```", "", path.read_text())
    for name in set(re.findall(r"`((?:attrib|editors|figures)(?:\.\w+)+)`", text)):
        assert resolve(name), name


def test_an_analysis_takes_at_most_four_files_and_an_editor_three():
    for name, most in (("adding-an-analysis.md", 4), ("adding-an-editor.md", 3)):
        files = re.findall(r"(?m)^# \d\. ((?:attrib|editors)/\S+\.py)", example(name))
        assert 1 < len(files) <= most


def test_the_glossary_has_each_term_once_in_alphabetical_order():
    terms = re.findall(r"(?m)^\*\*(.+?)\*\*: ", (DOCS / "glossary.md").read_text())
    lower = [term.lower() for term in terms]
    assert lower == sorted({*lower}) and len(terms) > 50


def test_every_page_is_in_the_menu():
    menu = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert {page for page in pages if f": {page}\n" in menu} == pages

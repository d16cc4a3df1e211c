"""Imports point down, hooks and matplotlib stay in their files: read from the source, not run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module belongs to the longest prefix that names it. Level 5 is the top: nothing imports it.
LEVELS = {
    "attrib.errors": 0,
    "attrib.batch": 0,
    "attrib.structure": 0,
    "attrib.geometry": 0,
    "attrib.image_style": 0,
    "attrib.encoding": 0,
    "attrib.loading": 0,
    "attrib.model_inputs": 0,
    "attrib.vlm": 0,
    "attrib.residual": 0,
    "attrib.running": 0,
    "attrib.rewriting": 0,
    "attrib.files": 0,
    "attrib.memory": 0,
    "attrib.environment": 0,
    "attrib.progress": 0,
    "attrib.taps": 1,
    "attrib.resuming": 1,
    "attrib.hooks": 1,
    "attrib.residual_writes": 1,
    "attrib.data": 1,
    "attrib.metrics": 1,
    "attrib.changes": 1,
    "attrib.results": 1,
    "attrib.noise": 1,
    "attrib.analyses": 2,
    "attrib.zoo": 2,
    "attrib.bridges": 2,
    "attrib.claims": 2,
    "attrib.conformance": 2,
    "attrib.assemble": 2,
    "attrib.collect": 2,
    "attrib.provenance": 2,
    "attrib.measures": 3,
    "attrib.plots": 3,
    "attrib.runs": 3,
    "attrib.selection": 3,
    "attrib.report": 4,
    "attrib.figures": 4,
    "attrib.cli": 5,
    "attrib.__main__": 6,
}
# Files that share one task: the wrapper, the forward pass, the claims about a model.
SIBLINGS = (
    {name for name, level in LEVELS.items() if level == 0},
    {"attrib.hooks", "attrib.taps", "attrib.resuming", "attrib.residual_writes"},
    {"attrib.conformance", "attrib.claims"},
)
# Lazy, inside a function: whoever wraps a model wants it checked by the tools built on the wrapper.
UPWARD = {("attrib.vlm", "attrib.conformance"), ("attrib.vlm", "attrib.bridges")}


def modules(package):
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
            for f in files}  # fmt: skip


def imports(source, name="module"):
    """Dotted names of what `source` imports, wherever in it, type checking aside."""
    found = set()
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            # `from attrib import plots` imports a module, `from attrib.plots import svg` a name.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _running(node):
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield from _running(child)


def home(name):
    """The entry of LEVELS that `name` belongs to, or None for what is not ours."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in LEVELS), None)


def wrong_imports(module, source):
    """The imports of `source` that do not point down from `module`."""
    here = home(module)
    wrong = set()
    for there in {home(name) for name in imports(source, module)} - {None, here}:
        siblings = any({here, there} <= group for group in SIBLINGS)
        if LEVELS[there] >= LEVELS[here] and not siblings and (here, there) not in UPWARD:
            wrong.add(there)
    return wrong


def _top(module):
    """The statements of a module outside its functions."""
    return [node for node in module.body if not isinstance(node, ast.FunctionDef)]


ATTRIB, EDITORS = modules("attrib"), modules("editors")
EDITING = ("attrib.cli", "attrib.figures")  # the places that bring both packages together


@pytest.mark.parametrize("module", sorted(set(ATTRIB) - {"attrib"}))
def test_every_module_has_a_level_and_imports_point_down(module):
    assert home(module), f"{module} has no level: add it to LEVELS"
    assert not wrong_imports(module, ATTRIB[module].read_text())


@pytest.mark.parametrize("module", sorted(m for m in ATTRIB if not m.startswith(EDITING)))
def test_attrib_never_imports_editors(module):
    found = imports(ATTRIB[module].read_text(), module)
    assert not {name for name in found if name.split(".")[0] == "editors"}


@pytest.mark.parametrize("module", sorted(m for m in ATTRIB if m.startswith("attrib.figures")))
def test_figures_import_editors_in_functions_alone(module):
    top = ast.Module(_top(ast.parse(ATTRIB[module].read_text())), [])
    assert "editors" not in {name.split(".")[0] for name in imports(ast.unparse(top), module)}


def test_editors_import_only_what_is_theirs():
    allowed = ("attrib.vlm", "attrib.batch", "attrib.hooks", "attrib.resuming", "attrib.residual",
               "attrib.noise", "attrib.running", "attrib.data", "attrib.metrics", "attrib.results",
               "attrib.errors", "attrib.files", "attrib.progress", "attrib.environment",
               "attrib.analyses", "attrib.collect", "attrib.provenance",
               "attrib.changes", "attrib.memory", "attrib.rewriting")  # fmt: skip
    for module, file in EDITORS.items():
        homes = {home(name) for name in imports(file.read_text(), module)} - {None}
        assert homes <= set(allowed), module


def test_only_hooks_register_hooks():
    calls = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")
    for module, file in (ATTRIB | EDITORS).items():
        if module != "attrib.hooks":
            assert not any(call in file.read_text() for call in calls), module
    assert "register_forward_hook" in ATTRIB["attrib.hooks"].read_text()


def test_only_plots_imports_matplotlib():
    users = {
        module
        for module, file in (ATTRIB | EDITORS).items()
        if {name.split(".")[0] for name in imports(file.read_text())} & {"matplotlib", "seaborn"}
    }
    assert {home(module) for module in users} == {"attrib.plots"}


def test_the_rules_would_notice():
    assert wrong_imports("attrib.hooks", "from attrib import plots") == {"attrib.plots"}
    assert wrong_imports("attrib.metrics", "def f():\n    import attrib.results") == {
        "attrib.results"
    }
    assert wrong_imports("attrib.analyses.x", "from attrib.analyses.y import z") == set()
    assert wrong_imports("attrib.plots", "from attrib.results import Result") == set()
    lazy = "if TYPE_CHECKING:\n    import matplotlib\nelse:\n    import numpy"
    assert imports(lazy) == set()

"""The rooms of the tree and the direction of imports: read from the source, not run."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import the rooms above it in its list, and itself. A name is a folder or a file.
ATTRIB_ROOMS = (
    "attrib.errors",
    "attrib.files",
    "attrib.progress",
    "attrib.vocabulary",
    "attrib.stats",
    "attrib.metrics",
    "attrib.results",
    "attrib.data",
    "attrib.model",
    "attrib.forward",
    "attrib.bridges",
    "attrib.checks",
    "attrib.loading",
    "attrib.runs",
    "attrib.analyses",
    "attrib.zoo",
    "attrib.selection",
    "attrib.plots",
    "attrib.report",
    "attrib.pipeline",
    "attrib.explorer",
    "attrib.cli",
    "attrib.__main__",
)
EDITORS_ROOMS = (
    "editors.base",
    "editors.adapters",
    "editors.gating",
    "editors.context",
    "editors.weights",
    "editors.io",
    "editors.training",
    "editors.methods",
    "editors.registry",
    "editors.evaluation",
)
# Optional integrations: imported inside a function, when a user asks for them.
EXCEPTIONS = {
    ("attrib.model.vlm", "attrib.bridges"),  # vlm.cache, vlm.to_bridge, VLM.from_bridge
    ("attrib.results", "attrib.pipeline"),  # result.plot, result.summary: matplotlib
    ("attrib.analyses.logit_lens", "attrib.plots"),  # lens.plot: matplotlib
}
# What editors do not need: the drawing, the texts and the commands of attrib.
CLOSED_TO_EDITORS = (
    "attrib.plots", "attrib.report", "attrib.pipeline", "attrib.explorer", "attrib.cli",
    "attrib.zoo",
)  # fmt: skip


def modules(package):
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
            for f in files}  # fmt: skip


ATTRIB, EDITORS = modules("attrib"), modules("editors")
ALL = ATTRIB | EDITORS


@cache
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


def room(name):
    """The room that `name` belongs to, or None for what is not ours."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    known = (*ATTRIB_ROOMS, *EDITORS_ROOMS)
    return next((prefix for prefix in prefixes if prefix in known), None)


def upward_imports(module, source):
    """The rooms that `source`, the text of `module`, imports although they are not below it."""
    rooms = ATTRIB_ROOMS if module.startswith("attrib") else EDITORS_ROOMS
    here = rooms.index(room(module))
    found = {room(name) for name in imports(source, module)} & set(rooms)
    return {there for there in found if rooms.index(there) > here} - {
        there for (who, there) in EXCEPTIONS if who == module
    }


def circles(graph):
    """Sets of modules that import each other, directly or not: Tarjan's components."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1 or node in graph[node]:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def import_graph():
    """Module -> the modules that it imports, function-level imports counted."""
    graph = {}
    for module, file in ALL.items():
        found = {name for name in imports(file.read_text(), module) if name in ALL}
        # `from attrib.data import load` runs the package; a package's own files are below it.
        found = {name for name in found if not module.startswith(f"{name}.")} - {module}
        except_for = {there for who, there in EXCEPTIONS if who == module}
        graph[module] = {name for name in found if room(name) not in except_for}
    return graph


@pytest.mark.parametrize("module", sorted(set(ALL) - {"attrib", "editors"}))
def test_every_module_has_a_room_and_imports_point_down(module):
    assert room(module), f"{module} is in no room: see CONTRIBUTING.md"
    assert not upward_imports(module, ALL[module].read_text())


def test_no_import_circle():
    assert not circles(import_graph())


@pytest.mark.parametrize("module", sorted(m for m in ATTRIB if not m.startswith("attrib.cli")))
def test_attrib_never_imports_editors(module):
    found = imports(ATTRIB[module].read_text(), module)
    assert not {name for name in found if name.split(".")[0] == "editors"}


def test_only_commands_import_editors_and_inside_functions():
    for module in (m for m in ATTRIB if m.startswith("attrib.cli")):
        body = ast.parse(ATTRIB[module].read_text()).body
        top = ast.Module([node for node in body if not isinstance(node, ast.FunctionDef)], [])
        assert "editors" not in {name.split(".")[0] for name in imports(ast.unparse(top), module)}


def test_editors_need_no_drawing_and_no_command():
    for module, file in EDITORS.items():
        rooms = {room(name) for name in imports(file.read_text(), module)}
        assert not rooms & set(CLOSED_TO_EDITORS), module


def test_no_file_is_over_250_lines():
    assert not {m: n for m, f in ALL.items() if (n := len(f.read_text().splitlines())) > 250}


def test_only_one_module_registers_hooks():
    calls = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")
    users = {m for m, file in ALL.items() if any(call in file.read_text() for call in calls)}
    assert users == {"attrib.model.wrapped"}


def test_only_plots_imports_matplotlib():
    users = {
        module
        for module, file in ALL.items()
        if {name.split(".")[0] for name in imports(file.read_text(), module)}
        & {"matplotlib", "seaborn"}
    }
    assert {room(module) for module in users} == {"attrib.plots"}


def test_the_rules_would_notice():
    assert upward_imports("attrib.forward.hooks", "from attrib import plots") == {"attrib.plots"}
    assert upward_imports("attrib.metrics", "def f():\n    import attrib.results") == {
        "attrib.results"
    }
    assert upward_imports("attrib.analyses.x", "from attrib.analyses.y import z") == set()
    assert upward_imports("attrib.plots", "from attrib.results import Result") == set()
    lazy = "if TYPE_CHECKING:\n    import matplotlib\nelse:\n    import numpy"
    assert imports(lazy) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_test_files_have_names_of_their_own():
    """Of two files of one name in folders without __init__.py pytest can collect one only."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})

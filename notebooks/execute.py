"""Run notebooks from their py:percent sources and keep the outputs: python notebooks/execute.py.

The .ipynb files are made from the .py files; edit those. Without names, all of them are run.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # before a kernel is started: bars are no result

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """The notebooks' sources: all files here but this one."""
    return sorted(set(HERE.glob("*.py")) - {Path(__file__)})


def executed(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source with its outputs: no clock times, no random ids, no log lines."""
    notebook = jupytext.read(source)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    ).execute()  # fmt: skip
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernel, "jupytext": {"formats": "ipynb,py:percent"}}
    return nbformat.from_dict(notebook)


if __name__ == "__main__":
    for path in [HERE / f"{name}.py" for name in sys.argv[1:]] or sources():
        nbformat.write(executed(path), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"))

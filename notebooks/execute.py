"""Run notebooks from their py:percent sources and keep the outputs: python notebooks/execute.py.

The .ipynb files are made from the .py files; edit those. Without names, all of them are run. With
--check, nothing is written.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # progress bars are not part of the output

import jupytext
import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """Return the notebooks' sources: all files here but this one."""
    return sorted(set(HERE.glob("*.py")) - {Path(__file__)})


@contextmanager
def kernel() -> Iterator[KernelManager]:
    """Start one kernel for all notebooks, so that imports are paid for once."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(HERE))
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def executed(source: Path, manager: KernelManager) -> nbformat.NotebookNode:
    """Return the notebook of a source with outputs, without times, random ids and log lines."""
    notebook = jupytext.read(source)
    reset = nbformat.v4.new_code_cell("%reset -f")
    notebook.cells.insert(0, reset)
    client = NotebookClient(notebook, km=manager, timeout=300, record_timing=False)
    client.execute(cleanup_kc=False)
    if client.kc is not None:
        client.kc.stop_channels()
    notebook.cells.remove(reset)
    number = 0
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
        if cell.cell_type == "code":
            number += 1
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    kernelspec = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernelspec, "jupytext": {"formats": "ipynb,py:percent"}}
    return nbformat.from_dict(notebook)


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--check"]
    with kernel() as running:
        for path in [HERE / f"{name}.py" for name in names] or sources():
            notebook = executed(path, running)
            if "--check" not in sys.argv:
                nbformat.write(notebook, path.with_suffix(".ipynb"))
            print(path.with_suffix(".ipynb").name)

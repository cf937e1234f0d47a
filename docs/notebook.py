"""Runs docs/notebooks/first_run.ipynb and keeps what it prints and draws: `python -m docs.notebook`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent / "notebooks"
NOTEBOOK = FOLDER / "first_run.ipynb"


def executed() -> NotebookNode:
    """The notebook with today's outputs; what it saves goes elsewhere. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    this_tree = os.pathsep.join(filter(None, (str(FOLDER.parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": this_tree, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(FOLDER / "demo", Path(folder, "demo"))
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {}  # times of execution
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)

"""The notebooks, executed as they stand; their kept outputs are those of a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from tests.support.tiny_model import save_tiny_llama

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
ALL = sorted(NOTEBOOKS.glob("*.ipynb"))


def execute(name: str, timeout_s: int = 300) -> str:
    """Run all cells in a kernel of its own; returns what they print."""
    notebook = nbformat.read(NOTEBOOKS / name, 4)
    NotebookClient(
        notebook, timeout=timeout_s, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    return printed(notebook)


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.get("text", "") for o in outputs)


@pytest.mark.operate
def test_training(tmp_path, monkeypatch):
    """On a tiny model: the cells run; what a real one learns is in the kept outputs."""
    save_tiny_llama(tmp_path, torch.bfloat16)
    monkeypatch.setenv("BMT_DEMO_MODEL", str(tmp_path))
    said = execute("train_a_mask.ipynb")
    assert "mask:" in said
    assert "model.layers" in said


@pytest.mark.engine
def test_versions(server, smol, monkeypatch):
    monkeypatch.setenv("BMT_DEMO_MODEL", str(smol))
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", server.key)
    said = execute("versions_on_a_server.ipynb")
    assert "ready: True" in said
    assert said.count("prod is chance@") == 2


def test_outputs_are_of_one_run_from_top_to_bottom():
    assert [path.name for path in ALL] == ["train_a_mask.ipynb", "versions_on_a_server.ipynb"]
    for path in ALL:
        notebook = nbformat.read(path, 4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert printed(notebook).strip()
        assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
        assert path.stat().st_size < 50_000
        assert "make setup" in notebook.cells[0].source, "what to install"

"""The notebook runs from top to bottom, in a kernel of its own, and is stored with its outputs."""

import base64
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/ddpg_paper.ipynb"


def test_stored_with_small_outputs():
    assert NOTEBOOK.stat().st_size < 500_000
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(cell["outputs"] for cell in code[1:])
    kinds = {kind for cell in code for output in cell["outputs"] for kind in output.get("data", {})}
    assert kinds == {"image/png", "image/gif", "text/plain"}


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("DDPG_STEPS", "250")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own shows figures
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    # Curves of training, the critic's values and the animation are images
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    animations = [output.data["image/gif"] for output in outputs if "image/gif" in output.get("data", {})]
    assert base64.b64decode(animations[0]).startswith(b"GIF89a")
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "Mean return over 20 episodes without noise" in text
    same = text[text.index("the same action:") :].split("[")
    assert same[1].split("]")[0] == same[2].split("]")[0]

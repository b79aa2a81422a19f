"""The benchmark of pixels in tiny form: what it writes, that it does not repeat itself, and its tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pixels(*args: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/pixels.py"), *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_learn_and_plot(tmp_path):
    out = ("--out", str(tmp_path))
    tiny = ("--steps", "80", "--evaluations", "2", "--eval-episodes", "1", "--episodes", "2")
    pixels("learn", "--variants", "tuned", "low-dimensional", *tiny, *out)
    runs = {run["variant"]: run for run in (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))}
    assert runs.keys() == {"tuned", "low-dimensional"}
    # 67 steps of the agent are an episode; 200 without repetition
    assert [step for step, _ in runs["tuned"]["training"]] == [67]
    assert [step for step, _ in runs["low-dimensional"]["training"]] == [200]
    assert [step for step, _ in runs["tuned"]["curve"]] == [40, 80]
    assert [len(run["returns"]) for run in runs.values()] == [2, 2]
    # Complete runs stay
    assert "steps" not in pixels("learn", "--variants", "tuned", "low-dimensional", *tiny, *out)
    table = pixels("plot", *out)
    assert table.count("| tuned | 0 | 80 |") == table.count("| low-dimensional | 0 | 240 |") == 1
    assert {path.name for path in tmp_path.glob("*.png")} == {"pixels_Pendulum-v1.png", "frames_Pendulum-v1.png"}


def test_speed():
    pytest.importorskip("Box2D")
    output = pixels("speed", "--rounds", "1", "--chunk", "3")
    for words in ("| DDPGPaper | 424,331 |", "| SB3, the same networks | 424,331 |", "| no agent |", "| Adam |"):
        assert words in output

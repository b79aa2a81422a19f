"""The benchmarks of replay buffers run; what they measure is theirs to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script, *args):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, args)]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_buffers(tmp_path):
    out = run("buffers.py", "--quick", "--folder", tmp_path, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 6
    assert all(row["measure"] in out for row in rows)
    assert all(row["value"] > 0 for row in rows)
    assert os.listdir(tmp_path) == ["out.json"]  # the pixels are gone


def test_prioritized_learning_keeps_what_it_has(tmp_path):
    args = ("--envs", "Pendulum-v1", "--seeds", 1, "--steps", 200, "--episodes", 1, "--json", tmp_path / "out.json")
    out = run("prioritized_learning.py", *args)
    results = json.loads((tmp_path / "out.json").read_text())
    assert len(results) == 2
    assert "| Pendulum-v1 | prioritised | 200 |" in out
    results = {name: [float(i)] * 5 for i, name in enumerate(results)}
    (tmp_path / "out.json").write_text(json.dumps(results))
    assert "| 1 | 1.0 | 1.0 |" in run("prioritized_learning.py", *args)

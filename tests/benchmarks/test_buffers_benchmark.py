"""The benchmarks of replay buffers run; no figure is checked."""

import json
import os


def test_buffers(run_benchmark, tmp_path):
    printed = run_benchmark("buffers", "--quick", "--folder", tmp_path, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 6
    assert all(row["measure"] in printed and row["value"] > 0 for row in rows)
    assert os.listdir(tmp_path) == ["out.json"]  # the pixels are gone


def test_prioritized_learning_keeps_its_results(run_benchmark, tmp_path):
    args = ("--envs", "Pendulum-v1", "--seeds", 1, "--steps", 200, "--episodes", 1, "--json", tmp_path / "out.json")
    printed = run_benchmark("prioritized_learning", *args)
    results = json.loads((tmp_path / "out.json").read_text())
    assert len(results) == 2
    assert "| Pendulum-v1 | prioritised | 200 |" in printed
    results = {name: [float(i)] * 5 for i, name in enumerate(results)}
    (tmp_path / "out.json").write_text(json.dumps(results))
    assert "| 1 | 1.0 | 1.0 |" in run_benchmark("prioritized_learning", *args)

"""The benchmarks of replay buffers run; no figure is checked."""

import json
import os


def test_buffers(run_benchmark, tmp_path):
    printed = run_benchmark("buffers", "--quick", "--folder", tmp_path, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 6
    assert all(row["measure"] in printed and row["value"] > 0 for row in rows)
    assert os.listdir(tmp_path) == ["out.json"]  # the pixels are gone

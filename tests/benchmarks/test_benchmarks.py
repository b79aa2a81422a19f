"""The benchmarks in tiny form: they run and write their files; no figure is checked."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch as th

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run_benchmark(run_script, monkeypatch):
    """Run a script, whose processes are forked: each would take seconds to import torch."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    yield lambda name, *arguments: run_script(BENCHMARKS / f"{name}.py", *arguments)
    th.set_flush_denormal(False)


def test_buffers(run_benchmark, tmp_path):
    printed = run_benchmark("buffers", "--quick", "--folder", tmp_path, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 6
    assert all(row["measure"] in printed and row["value"] > 0 for row in rows)
    assert os.listdir(tmp_path) == ["out.json"]  # the pixels are gone


@pytest.mark.slow
def test_pixels(run_benchmark, tmp_path):
    pytest.importorskip("Box2D")
    output = run_benchmark("pixels", "--rounds", "1", "--chunk", "3", "--json", tmp_path / "pixels.json")
    for words in ("| DDPGPaper | 424,331 |", "| SB3, the same networks | 424,331 |", "| no agent |", "| Adam |"):
        assert words in output
    results = json.loads((tmp_path / "pixels.json").read_text())
    assert [len(times) for times in results["gradient_step"]["milliseconds"].values()] == [1, 1, 1]
    assert [len(rates) for rates in results["car_racing"].values()] == [1, 1, 1, 1]


@pytest.mark.slow
def test_throughput(run_benchmark, tmp_path):
    tiny = (
        "--rounds 2 --steps 10 --envs Pendulum-v1 --settings 16:1 --n-envs 2 --endurance-steps 60 "
        "--parts compare step scaling endurance"
    )
    printed = run_benchmark("throughput", *tiny.split(), "--out", tmp_path)
    assert "| Pendulum-v1 | 16 | 1 |" in printed
    results = json.loads((tmp_path / "throughput.json").read_text())
    (row,) = results["compare"]
    assert {"SB3", "plain", "paper"} <= set(row["rates"])
    for name in ("plain", "paper"):
        ratios = [a / b for a, b in zip(row["rates"][name], row["rates"]["SB3"], strict=True)]
        assert row["ratios"][f"{name}/SB3"] == ratios
    assert [step["batch_norm"] for step in results["step"]] == ["no", "separate", "joint"]
    assert len(results["endurance"][0]["rates"]) == 30
    assert [row.get("n_envs", row.get("batch")) for row in results["scaling"]] == [2, 16, 64, 256, 1024, 64, 64, 64]
    for picture in ("throughput.png", "scaling.png"):
        assert (tmp_path / picture).stat().st_size > 1000

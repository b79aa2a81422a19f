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


def test_pixels_learn_and_plot(run_benchmark, tmp_path):
    out = ("--out", tmp_path)
    tiny = ("--steps", "80", "--evaluations", "2", "--eval-episodes", "1", "--episodes", "2")
    run_benchmark("pixels", "learn", "--variants", "tuned", "low-dimensional", *tiny, *out)
    runs = {run["variant"]: run for run in (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))}
    assert runs.keys() == {"tuned", "low-dimensional"}
    # 67 steps of the agent are an episode; 200 without repetition
    assert [step for step, _ in runs["tuned"]["training"]] == [67]
    assert [step for step, _ in runs["low-dimensional"]["training"]] == [200]
    assert [step for step, _ in runs["tuned"]["curve"]] == [40, 80]
    assert [len(run["returns"]) for run in runs.values()] == [2, 2]
    # Complete runs stay
    assert "steps" not in run_benchmark("pixels", "learn", "--variants", "tuned", "low-dimensional", *tiny, *out)
    table = run_benchmark("pixels", "plot", *out)
    assert table.count("| tuned | 0 | 80 |") == table.count("| low-dimensional | 0 | 240 |") == 1
    assert {path.name for path in tmp_path.glob("*.png")} == {"pixels_Pendulum-v1.png", "frames_Pendulum-v1.png"}


def test_speed_of_pixels(run_benchmark):
    pytest.importorskip("Box2D")
    output = run_benchmark("pixels", "speed", "--rounds", "1", "--chunk", "3")
    for words in ("| DDPGPaper | 424,331 |", "| SB3, the same networks | 424,331 |", "| no agent |", "| Adam |"):
        assert words in output


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

"""The benchmark of pixels in tiny form: its files and tables, and that it does not repeat a complete run."""

import json

import pytest


def test_learn_and_plot(run_benchmark, tmp_path):
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


def test_speed(run_benchmark):
    pytest.importorskip("Box2D")
    output = run_benchmark("pixels", "speed", "--rounds", "1", "--chunk", "3")
    for words in ("| DDPGPaper | 424,331 |", "| SB3, the same networks | 424,331 |", "| no agent |", "| Adam |"):
        assert words in output

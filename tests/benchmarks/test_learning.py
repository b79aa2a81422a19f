"""The learning benchmark in a tiny form, as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env


@pytest.fixture(scope="module")
def learning(load_benchmark):
    return load_benchmark("learning")


def test_table_json_and_picture(run_benchmark, tmp_path):
    args = ["--steps", "100", "--episodes", "4", "--seeds", "3", "--jobs", "2", "--out", tmp_path]
    printed = run_benchmark("learning", *args, "--variants", "paper", "SB3 DDPG, matched")
    written = json.loads((tmp_path / "learning.json").read_text())
    assert {"python", "torch", "stable_baselines3", "ddpg_ext"} <= written["versions"].keys()
    assert [result["variant"] for result in written["runs"]] == ["paper", "SB3 DDPG, matched"]
    for result in written["runs"]:
        assert len(result["returns"]) == 4
        assert [step for step, _ in result["curve"]] == list(range(5, 101, 5))
        mean, std = np.mean(result["returns"]), np.std(result["returns"])
        assert f"| {result['variant']} | {mean:.1f} +/- {std:.1f} | {mean:.1f} | {mean:.1f} |" in printed
    with Image.open(tmp_path / "learning_curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 2


def test_median_and_iqm_over_seeds(learning):
    results = [
        {"variant": "paper", "seed": seed, "returns": [mean - 1, mean + 1]}
        for seed, mean in enumerate([0.0, 10.0, 20.0, 30.0, -1000.0, 25.0, 15.0, 1000.0])
    ]
    row = learning.table(results).splitlines()[-1]
    # Means sorted: -1000, 0, 10, 15, 20, 25, 30, 1000; without a quarter at each end: 10, 15, 20, 25
    assert row.endswith("| 1000.0 +/- 1.0 | 17.5 | 17.5 |")
    assert learning.interquartile_mean([1.0, 2.0, 6.0]) == 3.0
    assert learning.interquartile_mean([-100.0, 2.0, 4.0, 7.0]) == 3.0


def test_variants_differ_in_what_they_are_named_after(learning):
    models = {name: make(make_vec_env("Pendulum-v1"), 0) for name, make in learning.VARIANTS.items()}
    paper = models["paper"]
    described = {name: (model.policy.batch_norm, model.qf_weight_decay) for name, model in list(models.items())[:4]}
    assert described == {
        "paper": (True, 1e-2),
        "no batch norm": (False, 1e-2),
        "no weight decay": (True, 0),
        "neither": (False, 0),
    }
    assert paper.action_noise.dt == 1.0
    assert models["noise with dt=1e-2"].action_noise.dt == 1e-2
    assert models["SB3 DDPG, its defaults"].action_noise is None
    matched = models["SB3 DDPG, matched"]
    assert (matched.batch_size, matched.tau, matched.gamma) == (paper.batch_size, paper.tau, paper.gamma)
    assert matched.learning_rate == paper.qf_learning_rate
    assert matched.policy.net_arch == paper.policy.net_arch

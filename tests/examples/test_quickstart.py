"""The main job in short form: what it prints, and the run folder it leaves, laid out like the RL Zoo's."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper
from ddpg_ext.zoo.hyperparameters import constructor_arguments

ROOT = Path(__file__).parents[2]
EPISODE = 200  # steps of a Pendulum-v1 episode


def quickstart(runs: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples/quickstart.py"), *args, "--runs", str(runs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs,
        # A second thread would wait for the test process's
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs with a gap, and one run of 300 steps in it."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("Pendulum-v1_1", "Pendulum-v1_6", "Pendulum-v1_best", "Pendulum-v10_9", "Other-v0_8"):
        (runs / name).mkdir()
    result = quickstart(runs, "--steps", "300", "--eval-episodes", "2", "--seed", "3")
    assert result.returncode == 0, result.stderr
    (runs / "stdout.txt").write_text(result.stdout)
    return runs


@pytest.fixture(scope="module")
def folder(runs) -> Path:
    """The next free number is one above the highest."""
    return runs / "Pendulum-v1_7"


def test_the_folder_has_everything(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "best_model.zip",
        "Pendulum-v1.zip",
        "evaluations.npz",
        "Pendulum-v1/args.yml",
        "Pendulum-v1/config.yml",
        "learning_curve.png",
        "agent.gif",
        "result.json",
        "0.monitor.csv",
    }


def test_it_says_where_and_how_well(runs, folder):
    text = (runs / "stdout.txt").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert "Pendulum-v1_7" in text
    assert f"{result['mean_return']:.1f} +/- {result['std_return']:.1f}" in text


def test_the_model_is_trained_with_the_papers_settings(folder):
    model = DDPGPaper.load(folder / "Pendulum-v1.zip", device="cpu")
    assert model.num_timesteps == 300
    # The first minibatch of 64 is complete with step 64; from then on one update per step
    assert model._n_updates == 300 - 63
    assert (model.learning_rate, model.qf_learning_rate, model.qf_weight_decay) == (1e-4, 1e-3, 1e-2)
    assert (model.batch_size, model.tau, model.gamma, model.seed) == (64, 1e-3, 0.99, 3)
    assert model.policy.net_arch == [400, 300]


def test_the_best_model_is_the_one_of_the_best_evaluation(folder):
    evaluations = np.load(folder / "evaluations.npz")
    steps, returns = evaluations["timesteps"], evaluations["results"]
    assert steps.tolist() == list(range(15, 301, 15))
    assert returns.shape == (20, 10)
    assert (evaluations["ep_lengths"] == EPISODE).all()
    best = DDPGPaper.load(folder / "best_model.zip", device="cpu")
    assert best.num_timesteps == steps[returns.mean(axis=1).argmax()]


def test_result_and_settings(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["episodes"] == 2
    assert result["seed"] == 3
    assert -2000 < result["mean_return"] < 0
    assert result["std_return"] >= 0
    args = yaml.safe_load((folder / "Pendulum-v1/args.yml").read_text())
    assert (args["algo"], args["env"], args["steps"], args["seed"]) == ("ddpg_paper", "Pendulum-v1", 300, 3)
    config = yaml.safe_load((folder / "Pendulum-v1/config.yml").read_text())
    assert config["n_timesteps"] == 300
    # A model can be made from the hyperparameters: they are the defaults
    model = DDPGPaper(env="Pendulum-v1", **constructor_arguments(config, (1,)))
    default = DDPGPaper("MlpPolicy", "Pendulum-v1")
    for name in ("learning_rate", "qf_learning_rate", "qf_weight_decay", "batch_size", "buffer_size", "tau", "gamma"):
        assert getattr(model, name) == getattr(default, name)
    assert repr(model.action_noise) == repr(default.action_noise)
    assert model.policy._get_constructor_parameters() == default.policy._get_constructor_parameters()


def test_the_monitor_file(folder):
    """One whole episode of 200 steps in 300, with a return that Pendulum can have."""
    header, columns, *episodes = (folder / "0.monitor.csv").read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "Pendulum-v1"
    (episode,) = csv.DictReader([columns, *episodes])
    assert int(episode["l"]) == EPISODE
    assert -16.3 * EPISODE < float(episode["r"]) < 0


def test_the_pictures(folder):
    with Image.open(folder / "learning_curve.png") as curve:
        assert curve.width > 500
        assert len(curve.convert("RGB").getcolors(maxcolors=2**20)) > 10  # something is drawn
    with Image.open(folder / "agent.gif") as animation:
        assert animation.n_frames == EPISODE // 2
        first = np.asarray(animation.convert("RGB"), dtype=int)
        animation.seek(50)
        assert np.abs(np.asarray(animation.convert("RGB"), dtype=int) - first).max() > 50  # it moves


def test_the_loaded_model_can_be_evaluated(folder):
    model = DDPGPaper.load(folder / "best_model.zip", device="cpu")
    mean, _ = evaluate_policy(model, gym.make("Pendulum-v1"), n_eval_episodes=1, warn=False)
    assert -2000 < mean < 0


def test_an_unknown_environment_is_named(tmp_path):
    result = quickstart(tmp_path, "Pendulumm-v1", "--steps", "10")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: there is no environment 'Pendulumm-v1'; did you mean")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []  # no folder for a run that never was

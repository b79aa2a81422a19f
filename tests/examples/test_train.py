"""`examples/train.py` in short form: its output, and the run folder, which is laid out like the RL Zoo's."""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, NonFiniteError, load_zoo_run
from ddpg_ext.zoo.hyperparameters import FILE, ZOO_KEYS, constructor_arguments, read_hyperparameters

EPISODE = 50  # steps of a Pendulum-v1 episode, see conftest.py
SETTINGS = ("learning_rate", "qf_learning_rate", "qf_weight_decay", "batch_size", "buffer_size", "tau", "gamma")


def test_a_run_with_the_papers_settings(example, tmp_path):
    for name in ("Pendulum-v1_1", "Pendulum-v1_6", "Pendulum-v1_best", "Pendulum-v10_9", "Other-v0_8"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    text = example("train", "--steps", 300, "--eval-episodes", 2, "--seed", 3)
    folder = tmp_path / "runs" / "Pendulum-v1_7"  # one above the highest number
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        *("best_model.zip", "Pendulum-v1.zip", "evaluations.npz", "learning_curve.png", "agent.gif", "evaluation.json"),
        *("Pendulum-v1/args.yml", "Pendulum-v1/config.yml", "0.monitor.csv"),
    }
    result = json.loads((folder / "evaluation.json").read_text())
    assert "Pendulum-v1_7" in text
    assert f": {result['mean_return']:.1f} +/- {result['std_return']:.1f}\n" in text
    assert (result["episodes"], result["seed"]) == (2, 3)
    assert -2000 < result["mean_return"] < 0 <= result["std_return"]

    model, env = load_zoo_run(folder, checkpoint="last")
    assert model.num_timesteps == 300
    assert model._n_updates == 300 - 63  # one per step since the step that completed a minibatch of 64
    assert [getattr(model, name) for name in SETTINGS] == [1e-4, 1e-3, 1e-2, 64, 1_000_000, 1e-3, 0.99]
    assert (model.seed, model.policy.net_arch) == (3, [400, 300])
    args = yaml.safe_load((folder / "Pendulum-v1/args.yml").read_text())
    assert (args["algo"], args["env"], args["steps"], args["seed"]) == ("ddpg_paper", "Pendulum-v1", 300, 3)
    command = [sys.executable, "-m", "ddpg_ext", "enjoy", "--folder", str(folder), "--env", "Pendulum-v1", "-n", "200"]
    result = subprocess.run([*command, "--no-render"], capture_output=True, text=True, timeout=300)
    assert re.search(r"Episode Reward: -\d", result.stdout), result.stderr
    config = yaml.safe_load((folder / "Pendulum-v1/config.yml").read_text())
    assert config["n_timesteps"] == 300
    # A model can be made from the hyperparameters, which are the defaults
    again = DDPGPaper(env="Pendulum-v1", **constructor_arguments(config, (1,)))
    default = DDPGPaper("MlpPolicy", "Pendulum-v1")
    for name in SETTINGS:
        assert getattr(again, name) == getattr(default, name)
    assert repr(again.action_noise) == repr(default.action_noise)
    assert again.policy._get_constructor_parameters() == default.policy._get_constructor_parameters()

    evaluations = np.load(folder / "evaluations.npz")
    steps, returns = evaluations["timesteps"], evaluations["results"]
    assert steps.tolist() == list(range(15, 301, 15))
    assert returns.shape == (20, 10)
    assert (evaluations["ep_lengths"] == EPISODE).all()
    best, env = load_zoo_run(folder, checkpoint="best")
    assert best.num_timesteps == steps[returns.mean(axis=1).argmax()]
    assert -2000 < evaluate_policy(best, env, 1)[0] < 0

    header, columns, *episodes = (folder / "0.monitor.csv").read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "Pendulum-v1"
    episode = next(csv.DictReader([columns, *episodes]))
    assert int(episode["l"]) == EPISODE
    assert -16.3 * EPISODE < float(episode["r"]) < 0

    with Image.open(folder / "learning_curve.png") as curve:
        assert curve.width > 500
        assert len(curve.convert("RGB").getcolors(maxcolors=2**20)) > 10  # something is drawn
    with Image.open(folder / "agent.gif") as animation:
        assert animation.n_frames == EPISODE // 2
        first = np.asarray(animation.convert("RGB"), dtype=int)
        animation.seek(12)
        assert np.abs(np.asarray(animation.convert("RGB"), dtype=int) - first).max() > 50  # it moves


def test_tuned(example, tmp_path):
    pytest.importorskip("mujoco")
    env_id = "Reacher-v5"
    text = example("train", env_id, "--tuned", "--steps", 70, "--eval-freq", 70, "--eval-episodes", 1)
    assert re.search(r"Mean return over 1 episodes without noise: -?\d+\.\d", text)
    folder = tmp_path / "runs" / f"{env_id}_1"
    names = {"best_model.zip", "evaluations.npz", "learning_curve.png", "evaluation.json", "agent.gif"}
    assert {path.name for path in folder.iterdir()} >= names
    # The settings of the YAML file have arrived
    model, env = load_zoo_run(folder, checkpoint="last")
    entry = read_hyperparameters(env_id)
    expected = DDPGPaper(env=env, **constructor_arguments(entry, env.action_space.shape))
    assert model.num_timesteps == 70
    assert [getattr(model, name) for name in SETTINGS] == [getattr(expected, name) for name in SETTINGS]
    assert type(model.action_noise) is type(expected.action_noise)
    assert model.policy.batch_norm == expected.policy.batch_norm
    assert yaml.safe_load((folder / env_id / "config.yml").read_text()) == {**entry, "n_timesteps": 70}


def test_no_entry_needs_the_zoo():
    """Keys such as `normalize` would be ignored by this script."""
    for entry in yaml.safe_load(FILE.read_text()).values():
        assert set(entry) & set(ZOO_KEYS) <= {"n_timesteps", "env_wrapper"}
        assert isinstance(entry.get("env_wrapper", ""), str)  # the script takes one wrapper without arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pendulumm-v1"], r"there is no environment 'Pendulumm-v1'; did you mean 'Pendulum-v1'"),
        (["not_there:Pendulum-v1"], r".*not_there"),
        (["CartPole-v1"], r"DDPG needs a continuous action space .*Discrete\(2\)"),
        (["Ant-v5", "--tuned"], r"ddpg_paper.yml has no entry for Ant-v5"),
        (["--seed", -1], r".*-1"),
        (["--runs", "/proc/runs"], r".*'/proc/runs"),
        (["--runs", "file"], r".*'file/Pendulum-v1_1"),
    ],
)
def test_bad_input_ends_with_one_line(example, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        example("train", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numbers_must_be_positive(example, capsys):
    for option in ("--steps", "--eval-episodes", "--eval-freq"):
        with pytest.raises(SystemExit):
            example("train", option, 0)
        assert f"error: argument {option}: must be above 0, got 0" in capsys.readouterr().err


def test_ctrl_c_keeps_the_agent(interrupt_at_100, monkeypatch, example, tmp_path):
    """It comes in the middle of the 100th step, and twice while the model is saved."""
    save = DDPGPaper.save

    def interrupted_save(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        save(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DDPGPaper, "save", interrupted_save)
    handler = signal.getsignal(signal.SIGINT)
    text = example("train", "--steps", 10**6, "--eval-freq", 10**6, "--eval-episodes", 1)
    assert "Stopped after 101 steps" in text
    assert DDPGPaper.load(tmp_path / "runs" / "Pendulum-v1_1" / "Pendulum-v1.zip").num_timesteps == 101
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_training_keeps_the_agent(monkeypatch, example, tmp_path):
    def train(self, gradient_steps, batch_size):
        raise NonFiniteError("a loss is nan")

    monkeypatch.setattr(DDPGPaper, "train", train)
    with pytest.raises(SystemExit, match=r"^error: a loss is nan"):
        example("train")
    assert DDPGPaper.load(tmp_path / "runs" / "Pendulum-v1_1" / "Pendulum-v1.zip").num_timesteps == 64

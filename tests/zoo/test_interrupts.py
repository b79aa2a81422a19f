"""Ctrl-C, and training that fails: the model is saved, and its run folder is whole."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from ddpg_ext import DDPGPaper, load_zoo_run
from ddpg_ext.callbacks import StopOnCtrlC, ignored_interrupts

LONG = ["--env", "Pendulum-v1", "-n", "1000000", "--eval-freq", "-1", "--save-freq", "100", "--seed", "1"]
SMALL = ["buffer_size:500", "batch_size:8", "policy_kwargs:dict(net_arch=[8,8])"]


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def open_whole(run, n_steps):
    """Open, play and continue a run folder, which has at least so many steps."""
    assert not list(run.rglob("*.tmp"))
    model, env = load_zoo_run(run, checkpoint="last")
    assert n_steps <= model.num_timesteps < 1_000_000
    for name, tensor in model.policy.state_dict().items():
        assert np.isfinite(tensor.numpy()).all(), name
    evaluate_policy(model, env, 1)
    model.learn(20)
    return model, env


def test_ctrl_c_in_a_terminal(tmp_path, zoo):
    """
    The real program, with environments in processes of their own, and normalisation.

    A terminal sends the signal to all of the processes. By themselves, SB3's environments would end then, and the Zoo's
    program with an error, before the model is saved.
    """
    command = [sys.executable, "-m", "ddpg_ext", "train", *LONG, "--vec-env", "subproc", "--save-replay-buffer"]
    command += ["--eval-freq", "80", "--eval-episodes", "1", "-params", *SMALL, "n_envs:2", "normalize:True"]
    run = tmp_path / "logs" / "ddpg_paper" / "Pendulum-v1_1"
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
        try:
            wait_for(lambda: (run / "rl_model_100_steps.zip").is_file() or process.poll() is not None)
            os.killpg(process.pid, signal.SIGINT)
            status = process.wait(120)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    text = (tmp_path / "output").read_text()
    assert status == 0, text
    assert "Training ends after this step" in text
    assert "Traceback" not in text

    assert (run / "best_model.zip").is_file()
    assert {path.name for path in run.glob("*.csv")} == {"0.monitor.csv", "1.monitor.csv"}
    assert " -m ddpg_ext train " in (run / "Pendulum-v1" / "command.txt").read_text()
    model, env = load_zoo_run(run, checkpoint="last", seed=0)
    n_steps = model.num_timesteps
    assert 100 <= n_steps < 1_000_000
    # SB3 does not store the transition at which a callback ends training
    buffer = DDPGPaper.load(run / "Pendulum-v1.zip", make_vec_env("Pendulum-v1", 2), device="cpu")
    buffer.load_replay_buffer(run / "replay_buffer.pkl")
    assert buffer.replay_buffer.size() == min(n_steps // 2 - 1, 250)
    normalize = unwrap_vec_normalize(env)
    assert (normalize.gamma, normalize.training) == (0.98, False)
    assert normalize.obs_rms.count == pytest.approx(n_steps + 2, abs=0.1)  # and the first observations
    played = zoo("enjoy", "-n", "200", "--no-render", "--device", "cpu")
    returned = float(re.search(r"Episode Reward: (-?[\d.]+)", played.stdout)[1])
    assert returned == pytest.approx(evaluate_policy(model, env, 1)[0], abs=0.01)
    open_whole(run, 100)


def test_ctrl_c_twice_ends_a_step_that_takes_forever(start, tmp_path):
    (tmp_path / "busy.py").write_text(
        "from ddpg_ext import DDPGPaper\n"
        "train = DDPGPaper.train\n"
        "def busy(self, *args, **kwargs):\n"
        "    open('training', 'w').close()\n"
        "    train(self, *args, **kwargs)\n"
        "DDPGPaper.train = busy\n"
    )
    options = [*LONG, "--gym-packages", "busy", "-params", *SMALL, "gradient_steps:1000000", "learning_starts:300"]
    process, wait = start("train", *options)
    run = tmp_path / "logs" / "ddpg_paper" / "Pendulum-v1_1"
    said = tmp_path / "stderr"
    wait_for((tmp_path / "training").exists)  # a million gradient steps begin
    os.kill(process, signal.SIGINT)
    wait_for(lambda: "Press Ctrl-C again" in said.read_text())
    os.kill(process, signal.SIGINT)
    result = wait()
    assert result.status == 0, result.stderr
    open_whole(run, 300)


def test_ctrl_c_before_training_leaves_nothing(start, tmp_path):
    (tmp_path / "slow_env.py").write_text(
        "import time, gymnasium as gym\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Slow(PendulumEnv):\n"
        "    def __init__(self, **kwargs):\n"
        "        open('made', 'w').close()\n"
        "        time.sleep(100)\n"
        "gym.register('Slow-v0', Slow)\n"
    )
    process, wait = start("train", "--env", "Slow-v0", "--gym-packages", "slow_env")
    wait_for((tmp_path / "made").exists)
    os.kill(process, signal.SIGINT)
    result = wait()
    assert result.status == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("logs/ddpg_paper/*"))


BROKEN_ENV = """
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class Broken(PendulumEnv):
    n_steps = 0

    def step(self, action):
        self.n_steps += 1
        observation, reward, *rest = super().step(action)
        if self.n_steps == 90:
            {what}
        return observation, reward, *rest

gym.register("Broken-v0", Broken, max_episode_steps=200)
"""


@pytest.mark.parametrize(
    ("what", "message", "is_traceback"),
    [
        ("reward = float('nan')", "the reward is nan", False),
        ("raise OSError('the robot fell')", "the robot fell", True),
    ],
)
def test_training_that_fails_is_saved(zoo, tmp_path, what, message, is_traceback):
    (tmp_path / "broken_env.py").write_text(BROKEN_ENV.format(what=what))
    options = ["--env", "Broken-v0", "--gym-packages", "broken_env", "--eval-freq", "-1", "--save-replay-buffer"]
    result = zoo("train", *options, "-params", *SMALL, "n_timesteps:500")
    assert result.status == 1
    assert message in result.stderr
    assert ("Traceback" in result.stderr) == is_traceback
    run = tmp_path / "logs" / "ddpg_paper" / "Broken-v0_1"
    model, _ = load_zoo_run(run, env="Pendulum-v1")
    assert model.num_timesteps in (89, 90)
    model.load_replay_buffer(run / "replay_buffer.pkl")
    assert model.replay_buffer.size() == 89


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.001)  # Python handles signals between two instructions


def test_the_first_is_counted_the_second_raises_the_others_wait(capfd):
    before = signal.getsignal(signal.SIGINT)
    stop = StopOnCtrlC()
    with stop:
        ctrl_c()
    with stop:  # an earlier block does not count
        assert stop._on_step()
        ctrl_c()
        assert not stop._on_step()
        try:
            with pytest.raises(KeyboardInterrupt):
                ctrl_c()
            raise KeyboardInterrupt  # ends the block, not the program
        finally:
            stop.on_training_end()
            ctrl_c()  # saving
            ctrl_c()
    stop.end()  # a second time
    with stop:  # trains twice
        stop.on_training_end()
        stop._on_training_start()
        ctrl_c()
        assert not stop._on_step()
    assert capfd.readouterr().err.count("is being saved") == 2
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), StopOnCtrlC():
        raise KeyboardInterrupt  # not from Ctrl-C


def test_threads_get_no_signals():
    """As with Optuna's --n-jobs."""
    done = []

    def work():
        with StopOnCtrlC(), ignored_interrupts():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]

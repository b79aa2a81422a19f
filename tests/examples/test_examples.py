"""
Every example in short form, as it stands in its file: it runs, says what it should, and leaves what it promises.

They run in this process, one after the other: a start of Python with torch takes longer than most of them.
The quickstart and those of the replay buffers are run by tests of their own.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env

from ddpg_ext import DDPGPaper, InvalidArgumentError, NonFiniteError, load_zoo_run
from ddpg_ext.zoo.hyperparameters import constructor_arguments, read_hyperparameters

EXAMPLES = Path(__file__).parents[2] / "examples"
#: scripts that train with the settings of the YAML file, their environments, and what these need
TASKS = {
    "pendulum": ("Pendulum-v1", "pygame"),
    "mountain_car": ("MountainCarContinuous-v0", "pygame"),
    "lunar_lander": ("LunarLanderContinuous-v3", "Box2D"),
    "bipedal_walker": ("BipedalWalker-v3", "Box2D"),
    "hopper": ("Hopper-v5", "mujoco"),
    "half_cheetah": ("HalfCheetah-v5", "mujoco"),
    "inverted_double_pendulum": ("InvertedDoublePendulum-v5", "mujoco"),
}
NUMBER = r"-?\d+\.\d"


@pytest.fixture
def example(monkeypatch, capsys):
    """Run a script with arguments; gives what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as for a script that is run by its name

    def run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", TASKS)
def test_task(name, example, tmp_path):
    env_id, package = TASKS[name]
    pytest.importorskip(package)
    text = example(name, "--steps", 70, "--eval-freq", 70, "--eval-episodes", 1, "--runs", tmp_path)
    assert re.search(rf"Mean return over 1 episodes without noise: {NUMBER}", text)
    folder = tmp_path / f"{env_id}_1"
    assert {path.name for path in folder.iterdir()} >= {
        *(
            "best_model.zip",
            f"{env_id}.zip",
            "evaluations.npz",
            "learning_curve.png",
            "result.json",
            "agent.gif",
            env_id,
        )
    }
    # The settings of the YAML file have arrived
    model, env = load_zoo_run(folder, checkpoint="last")
    wanted = read_hyperparameters(env_id)
    expected = DDPGPaper(env=env, **constructor_arguments(wanted, env.action_space.shape))
    assert model.num_timesteps == 70
    for setting in (
        "learning_rate",
        "qf_learning_rate",
        "qf_weight_decay",
        "batch_size",
        "buffer_size",
        "tau",
        "gamma",
    ):
        assert getattr(model, setting) == getattr(expected, setting)
    assert type(model.action_noise) is type(expected.action_noise)
    assert model.policy.batch_norm == expected.policy.batch_norm
    written = yaml.safe_load((folder / env_id / "config.yml").read_text())
    assert written == {**wanted, "n_timesteps": 70}


def test_tasks_are_those_of_the_yaml_file():
    for env_id, _ in TASKS.values():
        assert read_hyperparameters(env_id) != read_hyperparameters("default")


def test_the_runner_refuses_settings_it_does_not_carry_out(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _runner

    args = _runner.command_line("", 10).parse_args(["--runs", str(tmp_path)])
    with pytest.raises(InvalidArgumentError, match=r"normalize.*ddpg_ext\.zoo\.train"):
        _runner.run("Pendulum-v1", {"policy": "MlpPolicy", "normalize": True}, args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pendulumm-v1"], r"there is no environment 'Pendulumm-v1'; did you mean 'Pendulum-v1'"),
        (["not_there:Pendulum-v1"], r"the environment 'not_there:Pendulum-v1' cannot be made: .*not_there"),
        (["CartPole-v1"], r"DDPG needs a continuous action space .*Discrete\(2\)"),
        (["--steps", -5], r"`--steps` must be a whole number above 0, got -5"),
        (["--eval-episodes", 0], r"`--eval-episodes` must be a whole number above 0, got 0"),
        (["--eval-freq", 0], r"`--eval-freq` must be a whole number above 0, got 0"),
        (["--seed", -1], r"`--seed` must be a whole number from 0"),
        (["--runs", "/proc/runs"], r"--runs '/proc/runs' cannot be written to \(.*\); choose another"),
        (["--runs", "{tmp_path}/file"], r"--runs '.*file' cannot be written to"),
    ],
)
def test_bad_input_ends_with_one_line(example, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    arguments = [str(argument).format(tmp_path=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        example("quickstart", "--runs", tmp_path / "runs", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_input_of_the_other_scripts(example, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^error: `--steps` must be"):
        example("pendulum", "--steps", 0, "--runs", tmp_path)
    wrong = {"tutorial": "eval-episodes", "callbacks": "eval-freq", "vec_normalize": "steps", "parallel_envs": "n-envs"}
    for name, option in wrong.items():
        for bad, value in {"steps": 0, "seed": -1, option: 0}.items():
            with pytest.raises(SystemExit, match=rf"^error: `--{bad}` must be a whole number"):
                example(name, f"--{bad}", value, "--runs", tmp_path)
        with pytest.raises(SystemExit, match=r"^error: --runs .* cannot be written to"):
            example(name, "--steps", 10, "--runs", tmp_path / "file")
    for env_id, message in {"Pendulumm-v1": "there is no environment", "CartPole-v1": "continuous action"}.items():
        with pytest.raises(SystemExit, match=rf"^error: .*{message}"):
            example("parallel_envs", env_id, "--runs", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Comes in the midst of the 100th step, and once more while the model is saved."""
    step, save = DDPGPaper._store_transition, DDPGPaper.save

    def store_transition(self, *args, **kwargs):
        if self.num_timesteps == 100:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, *args, **kwargs)

    def interrupted_save(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        save(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DDPGPaper, "_store_transition", store_transition)
    monkeypatch.setattr(DDPGPaper, "save", interrupted_save)


@pytest.mark.parametrize("name", ["pendulum", "tutorial", "callbacks", "vec_normalize"])
def test_ctrl_c_keeps_the_agent(name, ctrl_c, example, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    options = ["--eval-freq", 10**6] if name in ("pendulum", "callbacks") else []
    options += ["--eval-episodes", 1] if name in ("pendulum", "tutorial") else []
    text = example(name, "--steps", 10**6, "--runs", tmp_path, *options)
    assert "Stopped after 101 steps" in text
    file = "last_actor.zip" if name == "tutorial" else "Pendulum-v1.zip"
    (folder,) = tmp_path.iterdir()
    assert DDPGPaper.load(folder / file).num_timesteps == 101
    assert (folder / "vecnormalize.pkl").is_file() == (name == "vec_normalize")
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_a_terminal_keeps_the_agent_of_parallel_environments(tmp_path):
    """It goes to all processes; those of the environments live until the model is saved."""
    source = (
        "import os, runpy, signal, sys\nfrom ddpg_ext import DDPGPaper\n"
        "step, save = DDPGPaper._store_transition, DDPGPaper.save\n"
        "def store_transition(self, *args, **kwargs):\n"
        "    if self.num_timesteps == 100:\n        os.killpg(0, signal.SIGINT)\n"
        "    step(self, *args, **kwargs)\n"
        "def interrupted_save(self, *args, **kwargs):\n"
        "    os.killpg(0, signal.SIGINT)\n    save(self, *args, **kwargs)\n"
        "DDPGPaper._store_transition, DDPGPaper.save = store_transition, interrupted_save\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"sys.argv = ['parallel_envs', '--steps', '1000000', '--n-envs', '2', '--runs', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(EXAMPLES / 'parallel_envs.py')!r}, run_name='__main__')\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, start_new_session=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Stopped after 102 steps" in result.stdout
    assert "Traceback" not in result.stderr
    assert DDPGPaper.load(tmp_path / "parallel_envs_1" / "Pendulum-v1.zip").num_timesteps == 102


def test_an_error_in_training_keeps_the_agent(monkeypatch, example, tmp_path):
    def train(self, gradient_steps, batch_size):
        raise NonFiniteError("a loss is nan")

    monkeypatch.setattr(DDPGPaper, "train", train)
    with pytest.raises(SystemExit, match=r"^error: a loss is nan"):
        example("pendulum", "--runs", tmp_path)
    assert DDPGPaper.load(tmp_path / "Pendulum-v1_1" / "Pendulum-v1.zip").num_timesteps == 64


def test_tutorial(example, tmp_path):
    text = example("tutorial", "--steps", 2_050, "--eval-episodes", 2, "--runs", tmp_path)
    # The first ten episodes of 200 steps, and the table at the end
    assert re.search(rf"step 2,000: mean return of 10 episodes {NUMBER}, best {NUMBER}", text)
    assert re.search(rf"this run +2,050 +{NUMBER} +{NUMBER} +{NUMBER}", text)
    assert re.search(r"the tutorial +548,000 +-170\.6", text)
    folder = tmp_path / "tutorial_1"
    with Image.open(folder / "live.png") as picture:
        assert picture.width > 500
    assert list(folder.glob("tensorboard/*/events*"))
    # The best actor is from the end of the best episode, and loads without the script
    returns = [float(line.split(",")[0]) for line in (folder / "0.monitor.csv").read_text().splitlines()[2:]]
    best = DDPGPaper.load(folder / "best_actor.zip")
    assert best.num_timesteps == 200 * (int(np.argmax(returns)) + 1)
    assert (best.batch_size, best.tau, best.gamma, best.qf_weight_decay) == (64, 1e-3, 0.99, 0)
    assert best.policy.batch_norm is False


def test_the_tutorials_noise_goes_on_over_the_ends_of_episodes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import tutorial

    noise = tutorial.UnendingNoise(np.zeros(2), dt=1e-2, seed=0)
    assert (noise.noise_prev == 0).all()
    before = [noise() for _ in range(10)][-1]
    noise.reset()
    assert (noise.noise_prev.astype(np.float32) == before).all()
    # Its change in one step is that of the process: small against where it is after a while
    assert np.abs(noise() - before).max() < 5 * 0.2 * 0.1


def test_callbacks(example, tmp_path):
    text = example("callbacks", "--steps", 400, "--eval-freq", 20, "--threshold", -5_000, "--runs", tmp_path)
    # Any mean return is above -5,000: it stops at the first evaluation
    assert "20 steps of at most 400" in text
    folder = tmp_path / "callbacks_1"
    assert {"best_model.zip", "evaluations.npz", "live.png"} <= {path.name for path in folder.iterdir()}
    text = example("callbacks", "--steps", 100, "--eval-freq", 50, "--threshold", 1, "--runs", tmp_path)
    assert "100 steps of at most 100" in text
    names = {path.name for path in (tmp_path / "callbacks_2").iterdir()}
    assert names >= {
        "rl_model_50_steps.zip",
        "rl_model_100_steps.zip",
        "q_values_100_steps.png",
        "q_values_100_steps.npz",
    }


def test_custom_network(example, tmp_path):
    text = example("custom_network", "--steps", 100, "--runs", tmp_path)
    assert re.search(rf"Mean return over 20 episodes without noise: {NUMBER}", text)
    # 3 components and 6 products; two layers of 64 and their normalisation, one action
    assert f"actor: {2 * 9 + (9 * 64 + 64) + 2 * 64 + (64 * 64 + 64) + 2 * 64 + 65:,} parameters" in text
    assert (tmp_path / "custom_network.zip").is_file()


def test_the_extractor_of_custom_network_gives_all_products(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import custom_network

    space = make_vec_env("Pendulum-v1").observation_space
    features = custom_network.WithProducts(space, scale=0.5)(th.tensor([[2.0, 3.0, 5.0]]))
    assert features.tolist() == [[2, 3, 5, 2, 3, 5, 4.5, 7.5, 12.5]]


@pytest.mark.parametrize("option", [[], ["--no-her"]])
def test_her_goal_env(option, example, tmp_path):
    text = example("her_goal_env", "--steps", 120, "--runs", tmp_path, *option)
    assert re.search(r"step 120: \d+% of the goals reached", text)
    assert (tmp_path / "her_goal_env.zip").is_file()


def test_vec_normalize(example, tmp_path):
    text = example("vec_normalize", "--steps", 400, "--runs", tmp_path)
    assert re.search(rf"with the statistics: {NUMBER}", text)
    assert {path.name for path in (tmp_path / "vec_normalize_1").iterdir()} == {"Pendulum-v1.zip", "vecnormalize.pkl"}


def test_parallel_envs(example, tmp_path):
    (tmp_path / "parallel_envs_1").mkdir()  # of an earlier run
    text = example("parallel_envs", "--steps", 200, "--n-envs", 2, "--runs", tmp_path)
    # The first minibatch of 64 is complete after 32 steps of both; from then on two updates per step of both
    assert f"200 steps in 2 environments, {200 - 62} gradient steps" in text
    assert DDPGPaper.load(tmp_path / "parallel_envs_2" / "Pendulum-v1.zip").num_timesteps == 200
    assert list((tmp_path / "parallel_envs_1").iterdir()) == []


def test_onnx_export(example, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    text = example("onnx_export", "--steps", 100, "--runs", tmp_path)
    assert float(re.search(r"Largest difference .*: (\S+) of", text)[1]) < 1e-5
    assert re.search(rf"Return of an episode played by onnxruntime: {NUMBER}", text)


def test_resume_after_kill_and_load_zoo_agent(example, tmp_path):
    folder = tmp_path / "run"
    text = example("resume_after_kill", "--steps", 250, "--every", 100, "--folder", folder)
    assert "Starting anew" in text
    text = example("resume_after_kill", "--steps", 450, "--every", 100, "--folder", folder)
    # A snapshot is taken at the end of an episode of 200 steps
    assert "Going on after 200 steps" in text
    example("pendulum", "--steps", 70, "--eval-freq", 70, "--eval-episodes", 1, "--runs", tmp_path)
    text = example("load_zoo_agent", tmp_path / "Pendulum-v1_1", "--checkpoint", "last", "--episodes", 1, "--train", 70)
    assert "trained for 70 steps" in text
    assert re.search(rf"After 70 steps more: {NUMBER}", text)


def test_every_example_is_in_the_gallery():
    gallery = (EXAMPLES.parent / "docs/guide/examples.md").read_text(encoding="utf-8")
    scripts = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb") and path.name[0] != "_"]
    assert [name for name in scripts if f"examples/{name}" not in gallery] == []

"""`python -m ddpg_ext COMMAND`: the Zoo's programs write runs that each other and `load_zoo_run` open."""

import csv
import pickle
import re
import runpy
import signal
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import huggingface_hub
import huggingface_sb3
import numpy as np
import optuna
import pytest
import rl_zoo3.utils
import yaml
from huggingface_hub.errors import EntryNotFoundError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import DDPGPaper, load_zoo_run
from ddpg_ext.common import workers
from ddpg_ext.zoo.programs import DEFAULTS, run, with_defaults
from ddpg_ext.zoo.run_files import read_yaml

OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
PLAY = ["-n", "200", "--no-render", "--device", "cpu"]


def first_return(output):
    return float(re.search(r"Episode Reward: (-?[\d.]+)", output)[1])


def test_train_then_enjoy_and_load(train, zoo):
    options = ["--eval-freq", "50", "--eval-episodes", "1", "--save-freq", "60", "--save-replay-buffer", "-P"]
    options += ["--env-kwargs", "g:9.0", "-tb", "tb", "--verbose", "0", "--log-interval", "1"]
    run = train(*options, params=["qf_learning_rate:'lin_1e-2'", "noise_schedule:100"])
    assert {str(path.relative_to(run)) for path in run.rglob("*.*")} == {
        *("best_model.zip", "rl_model_60_steps.zip", "rl_model_120_steps.zip", "Pendulum-v1.zip"),
        *("evaluations.npz", "replay_buffer.pkl", "0.monitor.csv"),
        *("Pendulum-v1/config.yml", "Pendulum-v1/args.yml", "Pendulum-v1/command.txt"),
    }
    assert list(np.load(run / "evaluations.npz")["timesteps"]) == [50, 100]
    assert list((run.parents[2] / "tb" / "Pendulum-v1" / "DDPGPaper_1").iterdir())

    model, env = load_zoo_run(run, checkpoint="last", seed=0)
    assert env.get_attr("g") == [9.0]
    assert (model.num_timesteps, model.replay_buffer.buffer_size) == (120, 500)
    assert (model.qf_lr_schedule(1), model.qf_lr_schedule(0.5)) == (1e-2, 5e-3)
    assert model.action_noise.n_steps == 120
    assert model.action_noise.scale == 0
    model.load_replay_buffer(run / "replay_buffer.pkl")
    assert model.replay_buffer.size() == 120
    returns = {}
    for name, flags in {"last": [], "best": ["--load-best"], 60: ["--load-checkpoint", "60"]}.items():
        result = zoo("enjoy", *PLAY, *flags)
        assert result.status == 0, result.stderr
        returns[name] = first_return(result.stdout)
        assert returns[name] == pytest.approx(
            evaluate_policy(*load_zoo_run(run, checkpoint=name, seed=0), 1)[0], abs=0.01
        )
    assert len(set(returns.values())) > 1


def test_enjoy_opens_a_folder_that_holds_an_agent_alone(zoo, tmp_path):
    """Such as those of the quickstart and of the tutorial."""
    folder = tmp_path / "runs" / "mine"
    DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0).save(folder / "Pendulum-v1.zip")
    result = zoo("enjoy", "--folder", "runs/mine", "--env", "Pendulum-v1", "-n", "200", "--no-render", "--seed", "0")
    assert result.status == 0, result.stderr
    assert first_return(result.stdout) == pytest.approx(evaluate_policy(*load_zoo_run(folder, seed=0), 1)[0], abs=0.01)


def test_training_goes_on(train, zoo, tmp_path):
    """With --trained-agent: weights, optimisers, replay buffer and normalisation of a run; settings may change."""
    first = train("--save-replay-buffer", params=["normalize:True"])
    agent = str(first / "Pendulum-v1.zip")
    options = ["-i", agent, "--save-replay-buffer", "--verbose", "0"]
    second = train(*options, params=["noise_type:'normal'", "noise_std:0.3", "tau:0.5", "normalize:True"], number=2)
    env = VecNormalize.load(second / "Pendulum-v1" / "vecnormalize.pkl", make_vec_env("Pendulum-v1"))
    before, after = (DDPGPaper.load(run / "Pendulum-v1", env, device="cpu") for run in (first, second))
    assert (before._n_updates, after._n_updates) == (113, 226)  # from the step that completes a minibatch, each time
    assert (before.tau, after.tau) == (0.005, 0.5)
    assert isinstance(after.action_noise, NormalActionNoise)
    steps = [model.critic.optimizer.state_dict()["state"][0]["step"] for model in (before, after)]
    assert [int(step) for step in steps] == [113, 226]
    assert env.obs_rms.count == pytest.approx(242, abs=0.1)
    after.load_replay_buffer(second / "replay_buffer.pkl")
    assert after.replay_buffer.size() == 240


def test_training_goes_on_from_sb3s_ddpg(train, zoo):
    """An agent that the Zoo's own DDPG trained is this algorithm's from then on."""
    small = ["buffer_size:500", "policy_kwargs:dict(net_arch=[8,8])", "learning_starts:10"]
    options = ["--algo", "ddpg", "--env", "Pendulum-v1", "-n", "60", "--eval-freq", "-1"]
    assert zoo("train", *options, "--device", "cpu", "-params", *small).status == 0
    run = train("-i", "logs/ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    model, _ = load_zoo_run(run)
    assert model.policy.action_layer == 1
    config = yaml.load((run.parents[1] / "ddpg/Pendulum-v1_1/Pendulum-v1/config.yml").read_text(), yaml.UnsafeLoader)
    assert config["noise_type"] == "normal"  # its own file of hyperparameters


def test_a_file_of_ones_own(zoo, tmp_path):
    (tmp_path / "own.yml").write_text(
        "default:\n  n_timesteps: 1e2\n  policy: MlpPolicy\n  buffer_size: 300\n  noise_schedule: {n_steps: 50}\n"
        "  policy_kwargs: {net_arch: [8], action_layer: 1}\n"
        "  callback: [{stable_baselines3.common.callbacks.LogEveryNTimesteps: {n_steps: 50}}]\n"
    )
    (tmp_path / "settings.py").write_text("hyperparams = {'default': dict(n_timesteps=80, policy='MlpPolicy')}\n")
    options = ["--eval-freq", "-1", "--seed", "1", "--device", "cpu"]
    for number, (file, n_steps) in enumerate({"own.yml": 100, "settings": 80}.items(), start=1):
        extra = [] if file == "own.yml" else ["-params", "buffer_size:300"]
        result = zoo("train", "-conf", file, *options, *extra)
        assert result.status == 0, result.stderr
        run = tmp_path / "logs" / "ddpg_paper" / f"Pendulum-v1_{number}"
        assert load_zoo_run(run)[0].num_timesteps == n_steps


def test_optimise_then_train_with_the_best(zoo, tmp_path):
    options = ["--env", "Pendulum-v1", "--storage", "sqlite:///zoo.db", "--study-name", "study", "--seed", "1"]
    search = ["-n", "300", "-optimize", "--n-trials", "2", "--eval-episodes", "1", "--no-optim-plots"]
    result = zoo("train", *options, *search, "--device", "cpu", "-params", "buffer_size:500")
    assert result.status == 0, result.stderr
    assert "Best trial" in result.stdout
    assert "qf_learning_rate" in result.stdout
    folder = tmp_path / "logs" / "ddpg_paper"
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".pkl"]  # the report, and no empty run
    with open(next(folder.glob("*.csv"))) as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE"]

    few = ["-n", "60", "--eval-freq", "-1", "--device", "cpu", "-params", "buffer_size:500"]
    result = zoo("train", *options, "--trial-id", "0", *few)  # which the Zoo takes for none
    assert result.status == 0, result.stderr
    model, _ = load_zoo_run(folder / "Pendulum-v1_1")
    tried = rows[0]
    assert model.learning_rate == float(tried["params_learning_rate"])
    assert model.qf_learning_rate == float(tried["params_qf_learning_rate"])
    assert model.batch_size == int(tried["user_attrs_batch_size"])
    assert model.gamma == float(tried["user_attrs_gamma"])
    assert model.n_steps == int(tried["params_n_steps"])
    assert str(model.policy.batch_norm) == {"none": "False", "both": "True"}.get(
        tried["params_batch_norm"], tried["params_batch_norm"]
    )


def test_trials_that_cannot_be_built_are_pruned(zoo, tmp_path):
    """And not the end of the study; a pruned trial can be trained with other settings."""
    storage = f"sqlite:///{tmp_path / 'zoo.db'}"
    study = optuna.create_study(storage=storage, study_name="study", direction="maximize")
    for n_steps in (3, 1):
        study.enqueue_trial({"n_steps": n_steps})
    options = ["--env", "Pendulum-v1", "--storage", storage, "--study-name", "study", "--seed", "1", "--device", "cpu"]
    search = [*options, "-n", "150", "-optimize", "--n-trials", "2", "--eval-episodes", "1", "--no-optim-plots"]
    buffer = "replay_buffer_class:'stable_baselines3.common.buffers.ReplayBuffer'"
    result = zoo("train", *search, "-params", "buffer_size:200", buffer)
    assert result.status == 0, result.stderr
    assert "Trial 0 pruned. `n_steps` must be 1 with the `replay_buffer_class` ReplayBuffer, got 3" in result.stderr
    study = optuna.load_study(storage=storage, study_name="study")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"]

    few = [*options, "-n", "60", "--eval-freq", "-1", "-params", "buffer_size:200"]
    result = zoo("train", *few, "--trial-id", "0")
    assert result.status == 0, result.stderr
    assert load_zoo_run(tmp_path / "logs" / "ddpg_paper" / "Pendulum-v1_1")[0].n_steps == 3
    result = zoo("train", *few, buffer, "--trial-id", "0")
    assert (result.status, "`n_steps` must be 1" in result.stderr) == (2, True)
    for options, part in ((["--trial-id", "2"], "--trial-id 2"), (["--trial-id", "0", "--study-name", "no"], "'no'")):
        result = zoo("train", *few[:-2], *options)
        assert result.status == 2
        assert part in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("storage", [[], ["--storage", "sqlite:///zoo.db", "--study-name", "study"]], ids=str)
def test_a_study_of_which_no_trial_can_be_built(zoo, storage):
    """Optuna's database reports a missing best trial in other words than its memory."""
    search = ["-n", "100", "-optimize", "--n-trials", "2", *storage]
    result = zoo("train", "--env", "Pendulum-v1", *search, "-params", "buffer_size:-5")
    assert result.status == 1
    assert "no trial was completed" in result.stderr.splitlines()[-1]
    assert "`buffer_size`" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_trials_on_dict_observations_sample_n_steps(zoo, tmp_path):
    (tmp_path / "dict_env.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "def make(**kwargs):\n    env = PendulumEnv(**kwargs)\n"
        "    space = gym.spaces.Dict({'state': env.observation_space})\n"
        "    return gym.wrappers.TransformObservation(env, lambda state: {'state': state}, space)\n"
        "gym.register('Dict-v0', make, max_episode_steps=50)\n"
    )
    search = ["-n", "100", "-optimize", "--n-trials", "3", "--eval-episodes", "1", "--no-optim-plots"]
    options = ["--env", "Dict-v0", "--gym-packages", "dict_env", "--seed", "1", "--device", "cpu"]
    result = zoo("train", *options, *search, "-params", "buffer_size:200")
    assert result.status == 0, result.stderr
    with open(next((tmp_path / "logs" / "ddpg_paper").glob("*.csv"))) as file:
        rows = list(csv.DictReader(file))
    assert max(int(row["params_n_steps"]) for row in rows) > 1
    assert {row["state"] for row in rows} == {"COMPLETE"}


@pytest.mark.parametrize(
    ("end", "options", "parts"),
    [
        ("os.kill(os.getpid(), 9)", [], ["(of 0 to 1) was killed by SIGKILL", "memory", "n_envs:1"]),
        ("1 / 0", [], ["(of 0 to 1) ended with status 1", "--vec-env dummy"]),
        (
            "os.kill(os.getpid(), 9)",
            ["-optimize", "--n-trials", "2"],
            ["(of 0 to 1)", "killed by SIGKILL"],
        ),
    ],
)
def test_a_process_that_ends(zoo, tmp_path, end, options, parts):
    """The error says how it ended and what to do, and the agent is saved."""
    (tmp_path / "deadly_env.py").write_text(
        "import os, sys\nimport gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "sys.path.insert(0, os.getcwd())\n"  # the processes inherit it
        "class Deadly(PendulumEnv):\n    steps = 0\n"
        "    def step(self, action):\n        self.steps += 1\n"
        f"        if self.steps == 20:\n            {end}\n"
        "        return super().step(action)\n"
        "gym.register('Deadly-v0', Deadly, max_episode_steps=200)\n"
    )
    command = ["--env", "Deadly-v0", "--gym-packages", "deadly_env", "-n", "200", "--eval-freq", "-1"]
    command += ["--vec-env", "subproc", "--device", "cpu", *options]
    result = zoo("train", *command, "-params", "buffer_size:500", "n_envs:2")
    assert result.status == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ddpg_ext train: error: the process of environment ")
    assert [part for part in parts if part not in last] == []
    if not options:
        model = DDPGPaper.load(tmp_path / "logs" / "ddpg_paper" / "Deadly-v0_1" / "Deadly-v0", device="cpu")
        assert model.num_timesteps == 38


def test_a_process_that_crashes():
    assert "was ended by SIGSEGV" in workers._how_it_ended(-signal.SIGSEGV)


def test_a_process_that_ends_before_it_has_an_environment(zoo, tmp_path):
    (tmp_path / "dead_env.py").write_text(
        "import os, sys\nimport gymnasium as gym\nsys.path.insert(0, os.getcwd())\n"
        "def make(**kwargs):\n    os.kill(os.getpid(), 9)\n"
        "gym.register('Dead-v0', make)\n"
    )
    command = ["--env", "Dead-v0", "--gym-packages", "dead_env", "-n", "200", "--vec-env", "subproc"]
    result = zoo("train", *command)
    assert result.status == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ddpg_ext train: error: a process of an environment ended before")
    assert "--vec-env dummy" in last


def frames(path):
    import imageio.v3

    return imageio.v3.imread(path, plugin="FFMPEG")


def test_videos(train, zoo, tmp_path):
    """One line says what to install; with it, `record_training` starts `record_video` as a process, and ffmpeg."""
    run = train()
    for name in ("moviepy", "imageio_ffmpeg"):  # found before those that are installed
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('none', name={name!r})\n")
    result = zoo("record_video", "-n", "10")
    assert (result.status, "Traceback" in result.stderr) == (2, False)
    assert "MoviePy is not installed" in result.stderr.splitlines()[-1]
    result = zoo("record_training", "-n", "10", PATH="/nonexistent")
    assert (result.status, "Traceback" in result.stderr) == (2, False)
    assert "needs imageio_ffmpeg: pip install 'ddpg_ext[zoo]'" in result.stderr.splitlines()[-1]
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'^zoo = \[.*"moviepy"', project, re.MULTILINE)
    assert any(re.match(r"imageio[-_]ffmpeg", needed) for needed in requires("moviepy"))

    for name in ("moviepy", "imageio_ffmpeg"):
        (tmp_path / f"{name}.py").unlink()
    result = zoo("record_video", "-n", "30", "-o", "videos")
    assert result.status == 0, result.stderr
    (video,) = (tmp_path / "videos").glob("final-model-ddpg_paper-Pendulum-v1-*.mp4")
    assert frames(video).shape[0] in (30, 31)
    assert frames(video).std() > 0
    result = zoo("record_training", "-n", "10", "--gif")
    assert result.status == 0, result.stderr
    assert (run / "videos" / "training.gif").stat().st_size > 0
    assert frames(run / "videos" / "training.mp4").shape[0] in (10, 11)


def test_plots(train, zoo, tmp_path):
    plots = ["-e", "Pendulum-v1", "-f", "logs", "--no-display", "--no-million", "-print", "-o", "results"]
    train("--eval-freq", "50", "--eval-episodes", "2", "-n", "210")
    assert zoo("all_plots", *plots).status == 0
    result = zoo("plot_from_file", "-i", "results.pkl")
    assert (result.status, "needs at least two runs" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr
    train("--eval-freq", "50", "--eval-episodes", "2", "-n", "210", number=2)
    result = zoo("plot_train", "-e", "Pendulum-v1", "-f", "logs", "-w", "1")
    assert result.status == 0, result.stderr
    result = zoo("all_plots", *plots)
    assert result.status == 0, result.stderr
    assert "Pendulum-v1-DDPG_PAPER-logs: 2" in result.stdout
    with open(tmp_path / "results.pkl", "rb") as file:
        results = pickle.load(file)
    assert results["Pendulum-v1"]["DDPG_PAPER-logs"]["mean_per_eval"].shape == (4, 2)
    result = zoo("plot_from_file", "-i", "results.pkl", "-o", "curve.svg")
    assert result.status == 0, result.stderr
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_tracking(train, tmp_path):
    """Weights & Biases, without a network."""
    pytest.importorskip("wandb")
    options = ["--track", "--wandb-project-name", "mine", "--wandb-tags", "short"]
    run = train(*options, environ={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert load_zoo_run(run)[0].num_timesteps == 120
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for part in (b"ddpg_paper", b"Pendulum-v1", b"saved_hyperparams", b"qf_learning_rate"):
        assert part in content


@pytest.mark.parametrize(
    ("program", "options", "parts"),
    [
        ("train", ["--env", "Pendulm-v1"], ["no environment 'Pendulm-v1'", "'Pendulum-v1'"]),
        ("train", ["--env", "HopperBulletEnv-v0"], ["pip install pybullet_envs_gymnasium"]),
        ("train", ["--env", "Mine-v0", "--gym-packages", "not_there"], ["--gym-packages not_there", "No module"]),
        ("train", ["--env", "CartPole-v1"], ["continuous action space"]),
        ("train", ["-params", "lerning_rate:0.1"], ["`lerning_rate` is unknown; did you mean 'learning_rate'"]),
        ("train", ["-params", "policy_kwargs:dict(batchnorm=True)"], ["'batchnorm'", "'batch_norm'"]),
        ("train", ["-params", "env_kwargs:dict(gg=5)"], ["'gg'"]),
        ("train", ["--device", "cud"], ["`device` must be"]),
        ("train", ["-i", "gone.zip"], ["valid path to a .zip"]),
        ("train", ["-f", "a_file"], ["log folder 'a_file' cannot be written", "--log-folder"]),
        ("train", ["-conf", "gone.yml"], ["'gone.yml' cannot be read"]),
        ("train", ["-conf", "gone"], ["error: the hyperparameters 'gone' cannot be read (ModuleNotFoundError: No "]),
        ("train", ["--env", ""], ["there is no environment ''; known"]),
        ("train", ["-n", "0"], ["--n-timesteps must be a whole number above 0, or -1", "got 0"]),
        ("train", ["--eval-episodes", "0"], ["--eval-episodes must be a whole number above 0, got 0"]),
        ("train", ["--n-eval-envs", "-1"], ["--n-eval-envs must be a whole number above 0, got -1"]),
        ("train", ["--trial-id", "3", "--storage", "sqlite:///a.db"], ["--trial-id needs --storage and --study-name"]),
        ("train", ["--storage", "foo", "-optimize"], ["Could not parse SQLAlchemy URL"]),
        ("train", ["--seed", "99999999999"], ["Seed must be between 0 and 2**32 - 1"]),
        ("train", ["-tb", "a_file"], ["the log folder 'a_file", "choose another with --tensorboard-log"]),
        ("train", ["--env-kwargs", "max_episode_steps:0"], ["`max_episode_steps` to be positive"]),
        ("train", ["--gym-packages", "broken"], ["ZeroDivisionError: division by zero (broken.py, line 2)"]),
        ("train", ["-params", "env_wrapper:'gone.Wrapper'"], ["ModuleNotFoundError: No module named 'gone'"]),
        ("train", ["--algo", "td3", "-params", "normalize:3"], ["`normalize` must be true, false", "got 3"]),
        ("plot_from_file", ["-i", "gone"], ["gone.pkl"]),
        ("enjoy", [], ["logs/ddpg_paper", "not found"]),
        ("record_video", [], ["logs/ddpg_paper", "not found"]),
        ("record_training", ["--env", "Hoper-v5"], ["logs/ddpg_paper", "not found"]),
    ],
)
def test_bad_input(zoo, tmp_path, program, options, parts):
    (tmp_path / "a_file").write_text("")
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    result = zoo(program, *options)
    assert result.status == 2
    assert [part for part in parts if part not in result.stderr] == []
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("logs/ddpg_paper/*"))


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("args.yml", "", ["args.yml has no settings; ddpg_ext.load_zoo_run opens the run"]),
        ("args.yml", "env: Pendulum-v1", ["args.yml has no `env_kwargs`"]),
        ("args.yml", "\x00", ["args.yml is not valid YAML"]),
        ("config.yml", "[1]", ["config.yml does not hold a mapping"]),
        ("config.yml", "normalize: true", ["vecnormalize.pkl not found"]),
        ("config.yml", "frame_stack: a", ["TypeError: '>' not supported", "load_zoo_run"]),
    ],
)
def test_a_damaged_run_folder(zoo, tmp_path, file, content, parts):
    run = tmp_path / "logs" / "ddpg_paper" / "Pendulum-v1_1"
    (run / "Pendulum-v1").mkdir(parents=True)
    (run / "Pendulum-v1.zip").write_text("")
    (run / "Pendulum-v1" / file).write_text(content)
    result = zoo("enjoy", *PLAY)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert [part for part in parts if part not in result.stderr] == []


def test_errors_while_training_have_a_traceback(zoo):
    result = zoo("train", "--env-kwargs", "g:None", "-n", "60", "--eval-freq", "-1", "-params", "buffer_size:100")
    assert result.status == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("pair", "advice"),
    [
        ("learning_rate:lin_1e-3", "text needs its own quotes: \"learning_rate:'lin_1e-3'\""),
        ("learning_rate", "pass key:value"),
        ("policy_kwargs:dict(net_arch=[8)", "is not a Python expression"),
    ],
)
def test_quotes_of_hyperparameters(zoo, pair, advice):
    result = zoo("train", "-params", pair)
    assert result.status == 2
    assert f"error: -params {pair!r}: " in result.stderr
    assert advice in result.stderr
    assert "Traceback" not in result.stderr


def test_functions_among_hyperparameters_are_refused(zoo, tmp_path):
    """The files of the run could not be read again."""
    result = zoo("train", "-params", "learning_rate:lambda p: 1e-3 * p")
    assert result.status == 2
    assert "-params learning_rate: <function" in result.stderr
    assert "cannot be stored in the files of a run" in result.stderr
    assert not list(tmp_path.rglob("args.yml"))


def test_load_from_hub(train, zoo, monkeypatch, capsys, tmp_path):
    """A local folder replaces the download; a repository without normalisation is complete."""
    run_folder = train()
    repository = tmp_path / "repository"
    repository.mkdir()
    (run_folder / "Pendulum-v1.zip").rename(repository / "ddpg_paper-Pendulum-v1.zip")
    for name in ("args.yml", "config.yml"):
        (run_folder / "Pendulum-v1" / name).rename(repository / name)
    (repository / "env_kwargs.yml").write_text("{}")
    with zipfile.ZipFile(repository / "train_eval_metrics.zip", "w") as metrics:
        metrics.writestr("evaluations.npz", b"")

    def download(repo_id, filename, **_):
        assert repo_id == "me/ddpg_paper-Pendulum-v1"
        if not (repository / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(repository / filename)

    arguments = ["--env", "Pendulum-v1", "-orga", "me"]
    assert "TRUST_REMOTE_CODE" in zoo("load_from_hub", *arguments).stderr.splitlines()[-1]
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_sb3, "load_from_hub", huggingface_sb3.load_from_hub)  # restored afterwards
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)
    run("load_from_hub", arguments)
    model, _ = load_zoo_run(tmp_path / "logs" / "ddpg_paper" / "Pendulum-v1_2")
    assert model.num_timesteps == 120
    with pytest.raises(SystemExit, match="2"):
        run("load_from_hub", [*arguments, "--exp-id", "2"])
    assert "already exists, use --force" in capsys.readouterr().err


def test_defaults_come_first_unless_another_algorithm_is_chosen():
    assert with_defaults("enjoy", ["-n", "5"]) == [*DEFAULTS["enjoy"], "-n", "5"]
    assert with_defaults("train", ["--algo", "ppo"]) == ["--algo", "ppo"]
    assert with_defaults("train", ["--algo=ppo"]) == ["--algo=ppo"]
    assert with_defaults("train", ["--algo"]) == ["--algo"]  # argparse reports it
    assert with_defaults("plot_train", ["-a", "td3"]) == ["--algo", "ddpg_paper", "-a", "td3"]


def test_environments_of_known_packages_are_registered(zoo, tmp_path):
    pytest.importorskip("dm_control")
    options = ["-n", "60", "--eval-freq", "-1", "-params", "buffer_size:100", "policy_kwargs:dict(net_arch=[8,8])"]
    result = zoo("train", "--env", "dm_control/cartpole-balance-v0", *options)
    assert result.status == 0, result.stderr
    assert list((tmp_path / "logs" / "ddpg_paper").glob("dm_control*/*.zip"))


@pytest.mark.parametrize("program", DEFAULTS)
def test_every_program_starts(zoo, program):
    result = zoo(program, "--help")
    assert result.status == 0
    # The Zoo's plots put a title in the place of the program's name
    assert result.stdout.startswith("usage: " if "plot" in program else f"usage: ddpg_ext {program}")


def test_a_continued_run_keeps_its_normalisation(train):
    first = train(params=["normalize:True"])
    second = train("-i", str(first / "Pendulum-v1.zip"))
    assert (second / "Pendulum-v1" / "vecnormalize.pkl").exists()
    assert read_yaml(second / "Pendulum-v1" / "config.yml")["normalize"] is True
    _, env = load_zoo_run(second, checkpoint="last")
    assert isinstance(env, VecNormalize)


def test_equal_parts_of_the_hyperparameters_are_written_twice(train):
    run = train(params=["policy_kwargs:dict(net_arch=dict(pi=(8,8),qf=(8,8)))"])
    assert load_zoo_run(run)[0].policy_kwargs["net_arch"] == {"pi": [8, 8], "qf": [8, 8]}


def test_the_best_agent_has_its_own_statistics(train):
    run = train("--eval-freq", "50", "--eval-episodes", "1", "--seed", "3", params=["normalize:True"])
    counts = {}
    for checkpoint in ("best", "last"):
        model, env = load_zoo_run(run, checkpoint=checkpoint)
        counts[model.num_timesteps] = env.obs_rms.count
    assert max(counts) == 120
    assert all(abs(count - steps) <= 2 for steps, count in counts.items()), counts


def test_classes_in_a_python_file_of_hyperparameters(train, tmp_path):
    (tmp_path / "conf.py").write_text(
        "import gymnasium as gym\n"
        "from ddpg_ext.ddpg_paper import MlpPolicy\n"
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "class Own(BaseCallback):\n    def _on_step(self):\n        return True\n"
        "hyperparams = {'Pendulum-v1': dict(policy=MlpPolicy, env_wrapper=gym.wrappers.FlattenObservation,"
        " callback='conf.Own', policy_kwargs=dict(net_arch=[8]))}\n"
    )
    run = train("--conf-file", str(tmp_path / "conf.py"))
    assert "FlattenObservation" in str(load_zoo_run(run)[1].envs[0])


def test_other_zip_files_beside_the_runs(train, zoo):
    run = train()
    (run.parents[1] / "backup.zip").touch()
    assert zoo("enjoy", *PLAY, "--exp-id", run.name[-1]).status == 0


def test_videos_are_of_the_runs_environment(monkeypatch):
    made = []
    monkeypatch.setattr(rl_zoo3.utils, "create_test_env", lambda *args, **kwargs: made.append(kwargs))
    monkeypatch.setattr(runpy, "run_module", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    run("record_video", [])
    hyperparams = {"frame_stack": 2, "env_kwargs": {"g": 1.5, "render_mode": "human"}}
    rl_zoo3.utils.create_test_env("Pendulum-v1", hyperparams=hyperparams, env_kwargs={"render_mode": "rgb_array"})
    assert made == [{"hyperparams": {"frame_stack": 2}, "env_kwargs": {"g": 1.5, "render_mode": "rgb_array"}}]


def test_stacked_frames_are_normalised(train, zoo):
    run = train("--eval-freq", "60", "--eval-episodes", "1", params=["frame_stack:2", "normalize:True"])
    _, env = load_zoo_run(run)
    assert env.observation_space.shape == (6,)
    assert isinstance(env, VecNormalize)
    result = zoo("enjoy", *PLAY)
    assert result.status == 0, result.stderr

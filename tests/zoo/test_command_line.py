"""What is passed to the Zoo's programs and cannot be done: a line with the option, what it got, and what would do."""

import sys

import gymnasium as gym
import optuna
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec

from ddpg_ext import InvalidArgumentError, register_zoo
from ddpg_ext.zoo.command_line import DEFAULTS, prepare_command_line


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Look at a command line, as in a process of its own; what the program then gets."""
    register_zoo()
    monkeypatch.chdir(tmp_path)

    def prepare(program, *arguments):
        monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
        prepare_command_line(program)
        return sys.argv[1:]

    return prepare


@pytest.fixture
def study(tmp_path):
    """A study of three trials in a database, of which the last was broken off."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.ask()  # broken off before it has drawn anything
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-params", "qf_learning_rate:lin_1e-3"], ["-params qf_learning_rate:lin_1e-3", ":'lin_1e-3'\""]),
        (
            ["-params", "tau:0.1", "learning_rate"],
            ["-params learning_rate: a value is missing; pass learning_rate:value"],
        ),
        (["--hyperparams", "learning_rate:"], ["-params learning_rate:: a value is missing"]),
        (["-params", "policy_kwargs:dict(net_arch=[8)"], ["policy_kwargs:dict(net_arch=[8)", "no Python expression"]),
        (["--env-kwargs", "gravity:5.0"], ["--env-kwargs gravity:5.0", "'gravity'", "it takes g"]),
        (["--eval-env-kwargs", "g=5.0"], ["--eval-env-kwargs g=5.0: a value is missing; pass g:value"]),
        (["--device", "cud"], ["--device 'cud'", "auto, cpu or cuda"]),
        (["-n", "-5"], ["--n-timesteps -5", "above 0", "that of the file"]),
        (["-n", "0"], ["--n-timesteps 0"]),
        (["-tb", "/proc/x"], ["--tensorboard-log '/proc/x' cannot be written to", "choose another folder"]),
        (["--gym-packages", "not_there"], ["--gym-packages not_there", "No module"]),
        (["--trial-id", "0"], ["--trial-id 0 needs --storage and --study-name"]),
        (["-optimize", "--storage", "sqlit:///a.db"], ["--storage 'sqlit:///a.db'", "sqlite:///study.db"]),
        (["-optimize", "--storage", "a.db"], ["--storage 'a.db'", "sqlite:///study.db"]),
        (["-optimize", "--storage", "/proc/x/a.log"], ["--storage '/proc/x/a.log' cannot be opened"]),
        (
            ["--trial-id", "1", "--study-name", "mine", "--storage", "sqlite:///gone.db"],
            ["there is no file 'gone.db'"],
        ),
        (["--trial-id", "1", "--study-name", "mine", "--storage", "gone.log"], ["there is no file 'gone.log'"]),
    ],
)
def test_train(prepare, tmp_path, arguments, parts):
    with pytest.raises(InvalidArgumentError) as caught:
        prepare("train", *arguments)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--trial-id", "3", "--study-name", "mine"], ["--trial-id 3", "'mine' has the trials 0 to 2"]),
        (["--trial-id", "2", "--study-name", "mine"], ["--trial-id 2", "not finish that trial; it has finished 0, 1"]),
        (["--trial-id", "-1", "--study-name", "mine"], ["--trial-id -1"]),
        (["--trial-id", "0", "--study-name", "min"], ["--study-name 'min'", "has 'mine'"]),
    ],
)
def test_a_study(prepare, study, options, parts):
    with pytest.raises(InvalidArgumentError) as caught:
        prepare("train", "--storage", study, *options)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_study_that_is_there(prepare, study):
    for storage in (study, f"{study}?timeout=20"):
        prepare("train", "--storage", storage, "--study-name", "mine", "--trial-id", "0")
    prepare("train", "--storage", study, "--study-name", "new", "-optimize")
    prepare("train", "--storage", "new.log", "--study-name", "new", "-optimize")


@pytest.mark.parametrize("url", ["nosuch://me:hidden@host/db", "nosuch://me:hidden@host:port/db"])
def test_passwords_are_not_shown(prepare, url):
    with pytest.raises(InvalidArgumentError, match=r"--storage 'nosuch://me:\*\*\*@host") as caught:
        prepare("train", "-optimize", "--storage", url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "arguments", "parts"),
    [
        ("enjoy", ["-n", "-1"], ["--n-timesteps -1"]),
        ("enjoy", ["--device", "gpu"], ["--device 'gpu'"]),
        ("enjoy", ["--env-kwargs", "gg:1"], ["--env-kwargs gg:1", "it takes g"]),
        ("record_video", ["-o", "/proc/x"], ["--output-folder '/proc/x' cannot be written to"]),
        ("record_training", ["-n", "0"], ["--n-timesteps 0"]),
        ("plots.plot_train", ["-e", "Pendulum-v1", "-f", "gone"], ["'gone'", "no such folder"]),
        ("plots.all_plots", ["-f", "logs"], ["--env is missing"]),
        ("plots.all_plots", ["-e", "Pendulum-v1"], ["--exp-folders is missing"]),
        ("plots.plot_from_file", [], ["--input is missing"]),
    ],
)
def test_other_programs(prepare, program, arguments, parts):
    with pytest.raises(InvalidArgumentError) as caught:
        prepare(program, *arguments)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_arguments_of_an_environment(prepare, monkeypatch):
    """The whole set of them is known to `train` alone: the others add what is given to those of the run."""

    def make(goal, wind=0.0, *_args, render_mode=None):
        return gym.make("Pendulum-v1", render_mode=render_mode)

    def make_with_any(goal, **kwargs):
        return make(goal)

    monkeypatch.setitem(gym.registry, "Needs-v0", EnvSpec("Needs-v0", entry_point=make))
    monkeypatch.setitem(gym.registry, "TakesAll-v0", EnvSpec("TakesAll-v0", entry_point=make_with_any))
    for program in ("enjoy", "record_video"):
        prepare(program, "--env", "Needs-v0", "--env-kwargs", "wind:2.0")
        prepare(program, "--env", "TakesAll-v0", "--env-kwargs", "wind:2.0")
        with pytest.raises(InvalidArgumentError, match=r"Needs-v0 does not take 'windy'; it takes goal, wind$"):
            prepare(program, "--env", "Needs-v0", "--env-kwargs", "windy:2.0")
    prepare("train", "--env", "Needs-v0", "--env-kwargs", "wind:2.0", "goal:1")
    with pytest.raises(InvalidArgumentError, match=r"cannot be made with that \(.*'goal'.*\); it takes goal, wind$"):
        prepare("train", "--env", "Needs-v0", "--env-kwargs", "wind:2.0")
    with pytest.raises(InvalidArgumentError, match=r"; it takes goal$"):
        prepare("train", "--env", "TakesAll-v0", "--env-kwargs", "wind:2.0")


def test_more_gpus_than_there_are(prepare, monkeypatch):
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    prepare("enjoy", "--device", "cuda:1")
    with pytest.raises(InvalidArgumentError, match="there are 2 GPUs; pass cuda:0 to cuda:1"):
        prepare("enjoy", "--device", "cuda:2")


def test_what_is_right_passes(prepare, tmp_path):
    arguments = [
        *("-n", "-1", "-tb", "new/folder", "--device", "cpu", "--env-kwargs", "g:9.0", "--eval-env-kwargs", "g:8.0"),
        *("-params", "policy_kwargs:dict(activation_fn=nn.ELU)", "qf_learning_rate:'lin_1e-3'", "-optimize"),
    ]
    assert prepare("train", *arguments) == [*DEFAULTS["train"], *arguments]
    assert prepare("enjoy", "-n", "5", "--help") == [*DEFAULTS["enjoy"], "-n", "5", "--help"]
    assert list(tmp_path.iterdir()) == []  # nothing was made to see whether it can be


def test_of_other_algorithms_and_what_the_programs_say_by_themselves(prepare):
    assert prepare("train", "--algo", "ppo") == ["--algo", "ppo"]
    assert prepare("plots.plot_train", "-a", "td3", "-e", "Ant-v5", "-f", ".") == [
        "-a",
        "td3",
        "-e",
        "Ant-v5",
        "-f",
        ".",
    ]
    # A number that is none, an option without its value: argparse has a message for them
    for arguments in (["-n", "many"], ["--device"], ["-params"]):
        prepare("train", *arguments)

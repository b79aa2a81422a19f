"""`ddpg_paper` is an algorithm everywhere in the Zoo; and its search space."""

import importlib
import pkgutil
import subprocess
import sys

import optuna
import pytest

from ddpg_ext import DDPGPaper, register_zoo
from ddpg_ext.zoo.hyperparameters import constructor_arguments

TABLES = ("ALGOS", "HYPERPARAMS_SAMPLER", "HYPERPARAMS_CONVERTER")
#: scripts that do their work when they are imported, or want packages that the Zoo does not install; and the plots,
#: which know no algorithms
NOT_IMPORTED = ("rl_zoo3.benchmark", "rl_zoo3.push_to_hub", "rl_zoo3.plots", "rl_zoo3.cli")


@pytest.fixture
def zoo_modules():
    """All modules of the Zoo: those that copied something before registration, and those that do it later."""
    rl_zoo3 = importlib.import_module("rl_zoo3")
    importlib.import_module("rl_zoo3.train")
    register_zoo()
    for module in pkgutil.iter_modules(rl_zoo3.__path__, "rl_zoo3."):
        if module.name not in NOT_IMPORTED:
            importlib.import_module(module.name)
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "rl_zoo3"}


def test_every_module_knows_it(zoo_modules):
    from ddpg_ext.zoo.experiment import ExperimentManager

    found = {
        (name.removeprefix("rl_zoo3."), table)
        for name, module in zoo_modules.items()
        for table in (*TABLES, "ExperimentManager")
        if hasattr(module, table)
    }
    for module in ("rl_zoo3", "utils", "exp_manager", "train", "enjoy", "record_video", "record_training"):
        assert (module, "ALGOS") in found
    for module in ("exp_manager", "train", "enjoy", "record_video"):
        assert (module, "ExperimentManager") in found
    for module in ("exp_manager", "hyperparams_opt"):
        assert (module, "HYPERPARAMS_SAMPLER") in found
    for name, table in found:
        value = getattr(zoo_modules[name if name == "rl_zoo3" else f"rl_zoo3.{name}"], table)
        if table == "ALGOS":
            assert value["ddpg_paper"] is DDPGPaper
        elif table == "ExperimentManager":
            assert value is ExperimentManager
        else:
            assert "ddpg_paper" in value


def test_doing_it_again_changes_nothing(zoo_modules):
    def state():
        names = (*TABLES, "ExperimentManager")
        values = {(m, name): getattr(module, name, None) for m, module in zoo_modules.items() for name in names}
        return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}

    before = state()
    register_zoo()
    assert state() == before
    assert before["rl_zoo3.train", "ExperimentManager"].__base__.__module__ == "rl_zoo3.exp_manager"


def test_copies_that_a_user_made_know_it_too(zoo_modules, monkeypatch):
    """As plug-ins do it that put a dict of their own into the Zoo's modules."""
    monkeypatch.setattr(zoo_modules["rl_zoo3.train"], "ALGOS", {"mine": object})
    register_zoo()
    assert set(zoo_modules["rl_zoo3.train"].ALGOS) == {"mine", "ddpg_paper"}


def test_a_manager_that_a_user_made_stays(zoo_modules, monkeypatch):
    class Own(zoo_modules["rl_zoo3.train"].ExperimentManager):
        pass

    monkeypatch.setattr(zoo_modules["rl_zoo3.train"], "ExperimentManager", Own)
    register_zoo()
    assert zoo_modules["rl_zoo3.train"].ExperimentManager is Own


def test_the_package_works_without_the_zoo_and_the_programs_say_what_is_missing(tmp_path):
    """In a process of its own, which must not have imported the Zoo for anything else."""
    source = (
        "import sys, ddpg_ext.__main__, ddpg_ext.zoo.programs\n"
        f"try:\n    ddpg_ext.__main__.main(['plot', {str(tmp_path)!r}])\n"
        "except SystemExit as end:\n    assert end.code\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('rl_zoo3', 'optuna')]\n"
        "sys.modules['rl_zoo3'] = None\n"
        "try:\n    ddpg_ext.register_zoo()\n"
        "except ddpg_ext.MissingExtraError as error:\n    assert \"pip install 'ddpg_ext[zoo]'\" in str(error)\n"
        "else:\n    raise AssertionError\n"
        "ddpg_ext.zoo.programs.run('train', [])\n"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'ddpg_ext[zoo]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def search_space():
    register_zoo()
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    return HYPERPARAMS_SAMPLER["ddpg_paper"], HYPERPARAMS_CONVERTER["ddpg_paper"]


def trials(sampler, her_kwargs=None, n_actions=2):
    """Trials, with what was sampled in them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    additional = {"using_her_replay_buffer": her_kwargs is not None, "her_kwargs": her_kwargs or {}}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        yield trial, sampler(trial, n_actions, 1, additional)


def test_it_covers_what_ddpg_has_to_be_tuned(search_space):
    sampled = [arguments for _, arguments in trials(search_space[0])]
    values = {name: {str(arguments[name]) for arguments in sampled} for name in sampled[0]}
    expected = {"learning_rate", "qf_learning_rate", "qf_weight_decay", "tau", "gamma", "n_steps", "batch_size"}
    assert set(values) == expected | {"action_noise", "policy_kwargs"}
    assert min(map(len, values.values())) > 3
    assert {arguments["policy_kwargs"]["batch_norm"] for arguments in sampled} == {True, False, "actor", "critic"}
    assert len({str(arguments["policy_kwargs"]["net_arch"]) for arguments in sampled}) == 3
    noises = {type(arguments["action_noise"]).__name__ for arguments in sampled}
    assert noises == {"OrnsteinUhlenbeckNoise", "NormalActionNoise"}
    for arguments in sampled:
        assert arguments["action_noise"]().shape == (2,)
        assert 0.9 <= arguments["gamma"] < 1
        assert arguments["batch_size"] in (16, 32, 64, 128, 256)


def test_all_that_it_samples_is_accepted(search_space):
    for _, arguments in list(trials(search_space[0], n_actions=1))[:10]:
        DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=100, device="cpu", **arguments)


def test_a_trial_that_is_loaded_is_the_trial_that_was_sampled(search_space):
    """By way of what Optuna keeps, and of the keys of the file."""
    sampler, converter = search_space
    for trial, arguments in trials(sampler):
        loaded = converter(trial.params)
        assert trial.user_attrs == {"gamma": loaded["gamma"], "batch_size": loaded["batch_size"]}
        again = constructor_arguments(loaded, (2,))
        assert {**again, "action_noise": 0} == {"policy": "MlpPolicy", **arguments, "action_noise": 0}
        assert repr(again["action_noise"]) == repr(arguments["action_noise"])


def test_goals(search_space):
    """With HER the Zoo's own choices come along, and no n-step returns, which its buffer does not know."""
    for trial, arguments in trials(search_space[0], her_kwargs={"copy_info_dict": True}):
        kwargs = arguments["replay_buffer_kwargs"]
        assert set(kwargs) == {"n_sampled_goal", "goal_selection_strategy", "copy_info_dict"}
        assert "n_steps" not in arguments
        loaded = search_space[1](trial.params)
        assert loaded["replay_buffer_kwargs"] == {k: v for k, v in kwargs.items() if k != "copy_info_dict"}
        constructor_arguments(loaded, (2,))

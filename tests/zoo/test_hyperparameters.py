"""From YAML to DDPGPaper: every argument, the schedules, the noise; and what is wrong in a file."""

import argparse
import inspect
import sys

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from toy_envs import ToyEnv

from ddpg_ext import (
    DDPGPaper,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LinearDecay,
    MissingExtraError,
    OrnsteinUhlenbeckNoise,
    ScheduledActionNoise,
    UnsupportedSpaceError,
    register_zoo,
)
from ddpg_ext.buffers import PrioritizedReplayBuffer
from ddpg_ext.ddpg_paper import MlpPolicy
from ddpg_ext.envs import PixelActionRepeat
from ddpg_ext.zoo.hyperparameters import FILE, OPTIONS, constructor_arguments, read_hyperparameters

TUNED = (
    *("Pendulum-v1", "MountainCarContinuous-v0", "LunarLanderContinuous-v3", "BipedalWalker-v3", "Hopper-v5"),
    *("HalfCheetah-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5"),
)
SMALL = {"n_timesteps": 100, "policy": "MlpPolicy", "buffer_size": 200, "policy_kwargs": {"net_arch": [6, 5]}}


@pytest.fixture
def manager(tmp_path):
    """The Zoo's experiment manager, for a file of hyperparameters with one entry."""
    register_zoo()
    from rl_zoo3.exp_manager import ExperimentManager

    def manager(text="", env_id="Pendulum-v1", **kwargs):
        entry = {**SMALL, **(yaml.safe_load(text) or {})}
        file = tmp_path / "hyperparams.yml"
        file.write_text(yaml.safe_dump({"default": entry}))
        kwargs = {"device": "cpu", "seed": 3, "eval_freq": -1, "verbose": 0, "config": str(file), **kwargs}
        return ExperimentManager(argparse.Namespace(), "ddpg_paper", env_id, str(tmp_path / "logs"), **kwargs)

    return manager


@pytest.fixture
def make_model(manager):
    return lambda *args, **kwargs: manager(*args, **kwargs).setup_experiment()[0]


def rates(schedule):
    return [schedule(remaining) for remaining in (1.0, 0.5, 0.0)]


def noise_is(cls, **attributes):
    def check(model):
        noise = model.action_noise
        return type(noise) is cls and all(np.all(getattr(noise, key) == value) for key, value in attributes.items())

    return check


class OwnPolicy(MlpPolicy):
    """A policy that a user wrote."""


#: Text in the file, and its effect on the model
ARGUMENTS = {
    "policy": (f"{__name__}.OwnPolicy", lambda m: m.policy_class is OwnPolicy),
    "learning_rate": ("lin_1e-3", lambda m: rates(m.lr_schedule) == [1e-3, 5e-4, 0]),
    "qf_learning_rate": ("lin_1e-2", lambda m: rates(m.qf_lr_schedule) == [1e-2, 5e-3, 0]),
    "buffer_size": ("3e2", lambda m: m.replay_buffer.buffer_size == 300),
    "learning_starts": ("50", lambda m: m.learning_starts == 50),
    "batch_size": ("16", lambda m: m.batch_size == 16),
    "tau": ("5e-3", lambda m: m.tau == 5e-3),
    "gamma": ("0.9", lambda m: m.gamma == 0.9),
    "train_freq": ("[2, episode]", lambda m: (m.train_freq.frequency, m.train_freq.unit.value) == (2, "episode")),
    "gradient_steps": ("-1", lambda m: m.gradient_steps == -1),
    "action_noise": ("null", lambda m: m.action_noise is None),
    "replay_buffer_class": ("PrioritizedReplayBuffer", lambda m: type(m.replay_buffer) is PrioritizedReplayBuffer),
    "replay_buffer_kwargs": ("{n_steps: 2, gamma: 0.99}", lambda m: m.replay_buffer.n_steps == 2),
    "optimize_memory_usage": ("true", lambda m: m.replay_buffer.optimize_memory_usage),
    "n_steps": ("3", lambda m: m.replay_buffer.n_steps == 3),
    "policy_kwargs": ("dict(net_arch=[7], activation_fn=nn.ELU, action_layer=1)", lambda m: m.policy.net_arch == [7]),
    "qf_weight_decay": ("1e-4", lambda m: m.critic.optimizer.param_groups[0]["weight_decay"] == 1e-4),
    "uniform_warmup": ("true", lambda m: m.uniform_warmup is True),
    "stats_window_size": ("7", lambda m: m.ep_info_buffer is None and m._stats_window_size == 7),
    "executor": ("eager", lambda m: m.executor == "eager"),
    "matmul_precision": ("medium", lambda m: m.matmul_precision == "medium"),
}
#: what an argument needs beside it
BESIDE = {
    "replay_buffer_kwargs": "\nreplay_buffer_class: ddpg_ext.buffers.PrioritizedReplayBuffer",
    "optimize_memory_usage": (
        "\nreplay_buffer_class: sb3.common.buffers.ReplayBuffer"
        "\nreplay_buffer_kwargs: dict(handle_timeout_termination=False)"
    ),
}


def test_no_argument_is_missed():
    parameters = set(inspect.signature(DDPGPaper.__init__).parameters) - {"self", "_init_setup_model"}
    assert parameters == set(ARGUMENTS) | set(OPTIONS)
    assert not set(ARGUMENTS) & set(OPTIONS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_can_stand_in_the_file(make_model, name):
    text, reached = ARGUMENTS[name]
    assert not reached(make_model())
    assert reached(make_model(f"{name}: {text}{BESIDE.get(name, '')}"))


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("policy_kwargs: {net_arch: [4e1, 3e1]}", lambda m: m.policy.net_arch == [40, 30]),
        ("policy_kwargs: {final_init: 2e-3, batch_norm: actor}", lambda m: m.policy.final_init == 2e-3),
        (
            "policy_kwargs: {optimizer_kwargs: {eps: 1e-5, betas: [8e-1, 0.999]}}",
            lambda m: (m.actor.optimizer.defaults["eps"], *m.actor.optimizer.defaults["betas"]) == (1e-5, 0.8, 0.999),
        ),
        (
            "{replay_buffer_class: PrioritizedReplayBuffer, replay_buffer_kwargs: {alpha: 55e-2}}",
            lambda m: getattr(m.replay_buffer, "alpha", None) == 0.55,
        ),
        ("noise_std: [3e-1]", noise_is(OrnsteinUhlenbeckNoise, sigma=0.3)),
        ("train_freq: [2e0, episode]", lambda m: (m.train_freq.frequency, m.train_freq.unit.value) == (2, "episode")),
    ],
)
def test_numbers_in_dicts_and_lists(make_model, text, check):
    """What YAML takes for text, since it has no decimal point."""
    assert not check(make_model())
    assert check(make_model(text))


def test_options_of_the_program(manager, tmp_path):
    """The arguments that are none of the file's."""
    model = manager(seed=5, verbose=1, tensorboard_log=str(tmp_path / "tb")).setup_experiment()[0]
    assert (model.seed, model.verbose, model.device.type) == (5, 1, "cpu")
    assert model.tensorboard_log == str(tmp_path / "tb" / "Pendulum-v1")
    for name, option in OPTIONS.items():
        with pytest.raises(InvalidArgumentTypeError, match=f"`{name}` .*{option}"):
            manager(f"{name}: 1").setup_experiment()


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("", noise_is(OrnsteinUhlenbeckNoise, sigma=0.2, theta=0.15, dt=1.0)),
        ("noise_type: ornstein-uhlenbeck", noise_is(OrnsteinUhlenbeckNoise, sigma=0.2, theta=0.15, dt=1.0)),
        (
            "{noise_std: 0.3, noise_theta: 0.2, noise_dt: 1e-2}",
            noise_is(OrnsteinUhlenbeckNoise, sigma=0.3, theta=0.2, dt=0.01),
        ),
        ("{noise_type: normal, noise_std: 0.1}", noise_is(NormalActionNoise, _sigma=0.1, _mu=0.0)),
        ("{noise_type: normal, noise_std: 0}", noise_is(NormalActionNoise, _sigma=0.0, _mu=0.0)),
        ("{noise_type: null, noise_std: 0.1}", lambda model: model.action_noise is None),
        ("{noise_type: normal, noise_std: 0.1, noise_dt: null}", noise_is(NormalActionNoise, _sigma=0.1, _mu=0.0)),
        ("action_noise: ornstein-uhlenbeck", noise_is(OrnsteinUhlenbeckNoise, sigma=0.2)),
        ("noise_schedule: 1e5", noise_is(ScheduledActionNoise, schedule=LinearDecay(100_000))),
        (
            "{noise_type: normal, noise_std: 0.1, noise_schedule: {n_steps: 10, end: 0.1}}",
            noise_is(ScheduledActionNoise, schedule=LinearDecay(10, end=0.1)),
        ),
    ],
)
def test_noise(make_model, text, check):
    assert check(make_model(text))


def test_the_zoos_own_keys_work(manager):
    assert manager("{frame_stack: 3}").setup_experiment()[0].env.observation_space.shape == (9,)
    text = "{n_envs: 2, normalize: {norm_reward: false}, gamma: 0.9, env_kwargs: {g: 5.0}}"
    model = manager(text).setup_experiment()[0]
    assert model.env.num_envs == 2
    assert model.env.get_attr("g") == [5.0, 5.0]
    normalize = model.get_vec_normalize_env()
    assert (normalize.gamma, normalize.norm_reward) == (0.9, False)


@pytest.mark.parametrize(
    ("options", "training", "evaluation"),
    [
        ({}, 5.0, 5.0),
        ({"env_kwargs": {"g": 3.0}}, 3.0, 3.0),
        ({"eval_env_kwargs": {"g": 2.0}}, 5.0, 2.0),
        ({"env_kwargs": {"g": 3.0}, "eval_env_kwargs": {"g": 2.0}}, 3.0, 2.0),
    ],
)
def test_evaluations_have_the_arguments_of_training(manager, options, training, evaluation):
    """The Zoo alone would evaluate without those of the file."""
    experiment = manager("{env_kwargs: {g: 5.0}}", **options)
    assert experiment.setup_experiment()[0].env.get_attr("g") == [training]
    assert experiment.create_envs(1, eval_env=True).get_attr("g") == [evaluation]


def test_null_is_left_out_of_what_enjoy_reads(manager):
    text = "{replay_buffer_class: null, frame_stack: null, env_kwargs: null, vec_env_wrapper: null, noise_std: null}"
    model, saved = manager(text).setup_experiment()
    assert set(saved) & {"replay_buffer_class", "frame_stack", "env_kwargs", "vec_env_wrapper"} == set()
    assert model.action_noise.sigma == 0.2


def test_the_number_of_steps_may_come_from_the_command_line(manager, tmp_path):
    file = tmp_path / "short.yml"
    file.write_text("Pendulum-v1: {policy: MlpPolicy}")
    with pytest.raises(InvalidArgumentError, match=r"short.yml has no `n_timesteps` for Pendulum-v1; .* --n-timesteps"):
        manager(config=str(file)).setup_experiment()
    experiment = manager(config=str(file), n_timesteps=7)
    experiment.setup_experiment()
    assert experiment.n_timesteps == 7


def test_other_algorithms_are_as_they_were(tmp_path):
    register_zoo()
    from rl_zoo3.exp_manager import ExperimentManager

    manager = ExperimentManager(
        argparse.Namespace(), "ddpg", "Pendulum-v1", str(tmp_path), device="cpu", eval_freq=-1, verbose=0
    )
    assert manager.config.endswith("rl_zoo3/hyperparams/ddpg.yml")
    model, _ = manager.setup_experiment()
    assert type(model).__name__ == "DDPG"
    assert (model.gamma, model.policy_kwargs["net_arch"]) == (0.98, [400, 300])


def test_the_default_is_the_paper():
    """Section 7; and so all that it says is what DDPGPaper does without it."""
    given = constructor_arguments(read_hyperparameters("Unheard-v0"), (1,))
    spoken = {name: value for name, value in given.items() if name not in ("policy", "action_noise", "policy_kwargs")}
    defaults = {name: p.default for name, p in inspect.signature(DDPGPaper.__init__).parameters.items()}
    assert {**defaults, **spoken, "batch_size": None} == defaults
    assert repr(given["action_noise"]) == repr(OrnsteinUhlenbeckNoise(np.zeros(1)))
    as_given, plain = (DDPGPaper(env="Pendulum-v1", **kw) for kw in (given, {"policy": "MlpPolicy"}))
    assert as_given.batch_size == plain.batch_size == 64
    policies = [model.policy._get_constructor_parameters() for model in (as_given, plain)]
    for name in ("net_arch", "batch_norm", "action_layer", "final_init"):
        assert getattr(as_given.policy, name) == getattr(plain.policy, name)
    assert policies[0].keys() == policies[1].keys()


def test_the_default_leaves_to_a_policy_what_depends_on_it():
    """``-params policy:"'CnnPolicy'"``: the paper's settings for pixels, not those for vectors."""
    entry = {**read_hyperparameters("default"), "policy": "CnnPolicy", "buffer_size": 60}
    env = PixelActionRepeat(gym.make("Pendulum-v1", render_mode="rgb_array"), repeat=1, size=64)
    model = DDPGPaper(env=env, **constructor_arguments(entry, (1,)))
    policy = model.policy
    assert (model.batch_size, policy.net_arch, policy.batch_norm, policy.final_init) == (16, [200, 200], False, 3e-4)
    assert policy.action_layer == 1


@pytest.mark.parametrize(("dict_obs", "policy"), [(False, "MlpPolicy"), (True, "MultiInputPolicy")])
def test_without_a_policy_it_is_that_of_the_observations(manager, monkeypatch, dict_obs, policy):
    spec = gym.envs.registration.EnvSpec("Toy-v0", ToyEnv, kwargs={"dict_obs": dict_obs})
    monkeypatch.setitem(gym.registry, "Toy-v0", spec)
    model, saved = manager(env_id="Toy-v0", config=None, hyperparams={"buffer_size": 200}).setup_experiment()
    assert type(model.policy) is DDPGPaper.policy_aliases[policy]
    assert saved["policy"] == policy


@pytest.mark.parametrize("env_id", TUNED)
def test_the_tuned_entries_are_whole(env_id):
    """Each makes a model for its environment, with this file alone as with the Zoo."""
    entry = read_hyperparameters(env_id)
    assert entry != read_hyperparameters("default")
    assert isinstance(entry["n_timesteps"], int)
    env = gym.make(env_id)
    DDPGPaper(env=env, **{**constructor_arguments(entry, env.action_space.shape), "buffer_size": 100})


def test_the_file_names_what_it_tunes():
    assert set(yaml.safe_load(FILE.read_text())) == {"default", *TUNED}


def test_reading_changes_nothing_for_the_next_reader():
    read_hyperparameters("Pendulum-v1")["policy_kwargs"]["batch_norm"] = "changed"
    assert read_hyperparameters("Pendulum-v1")["policy_kwargs"]["batch_norm"] is False
    entry = {"policy": "MlpPolicy", "train_freq": [1, "episode"], "learning_rate": "lin_1e-3", "noise_std": 0.1}
    before = dict(entry)
    arguments = constructor_arguments(entry, (2,))
    assert entry == before
    normal = {**read_hyperparameters("default"), "noise_type": "normal"}  # only this key is given again
    assert (constructor_arguments(normal, (2,))["action_noise"]._sigma == 0.2).all()
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert arguments["action_noise"].sigma.shape == (2,)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("lerning_rate: 0.1", ["`lerning_rate` is unknown", "'learning_rate'"]),
        ("noise_sigma: 0.1", ["`noise_sigma` is unknown", "'noise_std'"]),
        ("n_timestep: 5", ["'n_timesteps'"]),
        ("learning_rate: lin-1e-3", ["`learning_rate`", "lin_1e-3", "'lin-1e-3'"]),
        ("policy_kwargs: dict(net_arch=[8", ["`policy_kwargs`", "Python expression"]),
        ("replay_buffer_class: PriorityBuffer", ["`replay_buffer_class`", "PriorityBuffer"]),
        ("policy_kwargs: {net_arc: [8]}", ["'net_arc'", "'net_arch'"]),
        ("noise_type: ornstein", ["`noise_type` 'ornstein' is unknown", "'ornstein-uhlenbeck'"]),
        ("noise_type: normal", ["`noise_std`"]),
        ("{noise_type: normal, noise_std: 0.1, noise_theta: 0.15}", ["`noise_theta`", "`noise_type: normal`"]),
        ("{noise_type: normal, noise_std: 0.1, noise_dt: 0.01}", ["`noise_dt`", "`noise_type: normal`"]),
        *(
            (f"{{noise_type: {kind}, noise_std: {std}}}", ["`noise_std`", ">= 0"])
            for kind in ("normal", "ornstein-uhlenbeck")
            for std in ("-0.1", "much", "true", "[0.1, 0.2]", ".nan")
        ),
        ("noise_theta: 3", ["`theta * dt`"]),
        ("noise_schedule: {steps: 3}", ["`noise_schedule`", "n_steps"]),
        ("noise_schedule: soon", ["`n_steps`"]),
        ("{action_noise: null, noise_std: 0.1}", ["`action_noise` and `noise_std`"]),
        ("tau: fast", ["`tau`", "'fast'"]),
        ("tau: 2", ["`tau` must be a number in (0, 1], got 2"]),
        ("buffer_size: 1.5", ["`buffer_size`", "1.5"]),
        *(
            (f"n_envs: {count}", ["`n_envs` must be a whole number above 0, got"])
            for count in ("0", "two", "1.5", "true")
        ),
        *((f"n_timesteps: {count}", ["`n_timesteps`", "got"]) for count in ("null", "[1]", "-5", "many")),
        ("frame_stack: 0", ["`frame_stack` must be a whole number above 0, or null, got 0"]),
        ("normalize: 3", ["`normalize` must be true, false, or a dict of arguments of VecNormalize, got 3"]),
        ("normalize: dict(", ["`normalize` must be a Python expression"]),
        ("monitor_kwargs: 1", ["`monitor_kwargs` must be a dict"]),
        ("env_kwargs: [1]", ["`env_kwargs` must be a dict"]),
        ("policy: 1", ["`policy` must be a name or a class, got 1"]),
        *(
            (f"{key}: {value}", [f"`{key}` must be `module.Class`, ", "or a list of them, got"])
            for key, value in (("env_wrapper", 1), ("vec_env_wrapper", "Wrap"), ("callback", "[{a.B: 3}]"))
        ),
    ],
)
def test_what_is_wrong_in_a_file(manager, tmp_path, text, parts):
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError)) as caught:
        manager(text).setup_experiment()
    assert [part for part in parts if part not in str(caught.value)] == []
    assert not list(tmp_path.glob("logs/ddpg_paper/*"))  # no empty run


def test_discrete_actions(manager, tmp_path):
    for kwargs in ({}, {"optimize_hyperparameters": True, "n_evaluations": 1}):
        with pytest.raises(UnsupportedSpaceError, match="continuous action space"):
            manager("noise_std: 0.1", "CartPole-v1", **kwargs).setup_experiment()
    assert not list(tmp_path.glob("logs/ddpg_paper/*"))


def test_files_that_cannot_be_read(manager, tmp_path):
    (tmp_path / "bad.yml").write_text("default: {a: [}")
    (tmp_path / "folder.yml").mkdir()
    texts = ("", "[1]", "3", "text", "default:", "default: [1]", "default: text", "# \xe9")
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yml").write_text(text, encoding="latin-1")
    for number, text in enumerate(("hyperparams = 3", "1 / 0", "(", "")):
        (tmp_path / f"{number}.py").write_text(text)
    for name in ("gone.yml", "bad.yml", "folder.yml", *(f"{n}.yml" for n in range(8)), *(f"{n}.py" for n in range(4))):
        with pytest.raises(InvalidArgumentError, match=rf"hyperparameters .*{name}' cannot be read"):
            manager(config=str(tmp_path / name)).setup_experiment()
        if name.endswith(".yml"):
            with pytest.raises(InvalidArgumentError, match=name):
                read_hyperparameters("Pendulum-v1", tmp_path / name)
    (tmp_path / "own.yml").write_text("Pendulum-v1: {}")
    with pytest.raises(InvalidArgumentError, match="no entry for 'Pendulum-v2'; did you mean 'Pendulum-v1'"):
        read_hyperparameters("Pendulum-v2", tmp_path / "own.yml")


def test_without_pyyaml(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"reading hyperparameters needs yaml: pip install 'ddpg_ext\[extra\]'"):
        read_hyperparameters("Pendulum-v1")

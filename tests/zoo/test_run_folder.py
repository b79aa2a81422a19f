"""Run folders of the Zoo and of the examples: published runs, other environments, normalisation, wrappers."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from ddpg_ext import (
    CheckpointError,
    CheckpointNotFoundError,
    DDPGPaper,
    EnvironmentNotFoundError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    UntrustedContentError,
    load_zoo_run,
)
from ddpg_ext.envs import PixelActionRepeat
from ddpg_ext.zoo.run_files import literal, read_yaml

AGENTS = Path(os.environ.get("DDPG_EXT_ZOO_AGENTS", Path(__file__).parents[3] / "shared" / "zoo_agents"))
needs_agent = pytest.mark.skipif(not AGENTS.exists(), reason="the published agent is not here")
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def make_model(env="Pendulum-v1", cls=DDPG, seed=0):
    kwargs = {"net_arch": [6, 5]}
    return cls("MlpPolicy", env, buffer_size=200, learning_starts=5, batch_size=4, policy_kwargs=kwargs, seed=seed)


def zoo_yaml(values):
    """As the Zoo writes it: an ``OrderedDict``, by its constructor."""
    pairs = [[key, value] for key, value in values.items()]
    return "!!python/object/apply:collections.OrderedDict\n" + yaml.safe_dump([pairs])


def make_run(root, env_id="Pendulum-v1", number=1, config=None, args=None, model=None, name=None):
    run = root / f"{env_id}_{number}"
    (run / env_id).mkdir(parents=True)
    (model or make_model(env_id)).save(run / f"{name or env_id}.zip")
    (run / env_id / "config.yml").write_text(zoo_yaml(config or {"policy": "MlpPolicy"}))
    (run / env_id / "args.yml").write_text(
        zoo_yaml({"algo": "ddpg", "env": env_id, "env_kwargs": None, **(args or {})})
    )
    return run


@needs_agent
def test_the_published_run_does_what_it_did():
    """
    Its published mean return is -152 over 750 episodes.

    The deviation of one episode's return is about 90, so 20 episodes have a mean within 60 of it in 99.7 % of seeds.
    """
    model, env = load_zoo_run(AGENTS / "ddpg", seed=0)
    assert model.env is env
    assert abs(evaluate_policy(model, env, n_eval_episodes=20)[0] + 152) < 60
    run = AGENTS / "ddpg" / "Pendulum-v1_1"
    for path in (run, run / "Pendulum-v1.zip"):
        action = load_zoo_run(path)[0].predict(OBSERVATIONS)[0]
        assert np.array_equal(action, model.predict(OBSERVATIONS)[0])
    config = read_yaml(run / "Pendulum-v1" / "config.yml")
    assert (config["gamma"], config["train_freq"]) == (0.98, [1, "episode"])
    assert literal(config["policy_kwargs"], "policy_kwargs") == {"net_arch": [400, 300]}


def test_which_checkpoint(tmp_path):
    run = make_run(tmp_path, model=make_model(seed=0))
    for seed, name in enumerate(["best_model.zip", "rl_model_1000_steps.zip", "rl_model_20000_steps.zip"], start=1):
        make_model(seed=seed).save(run / name)

    def seed(checkpoint, path=run):
        return load_zoo_run(path, checkpoint=checkpoint)[0].seed

    assert [seed(checkpoint) for checkpoint in (None, "best", "last", 1000, 20_000)] == [1, 1, 0, 2, 3]
    (run / "best_model.zip").unlink()
    assert seed(None) == 0
    (run / "Pendulum-v1.zip").unlink()
    assert seed(None) == 3
    with pytest.raises(CheckpointNotFoundError, match="1000, 20000"):
        seed(5)
    with pytest.raises(CheckpointNotFoundError, match="best"):
        seed("best")
    for wrong in ("first", 1.5, True):
        with pytest.raises(InvalidArgumentError, match="checkpoint"):
            seed(wrong)
    with pytest.raises(InvalidArgumentError, match="not a folder"):
        seed("best", run / "rl_model_1000_steps.zip")


def test_the_latest_run_of_a_folder(tmp_path):
    for number in (2, 10, 9):
        make_run(tmp_path, number=number, model=make_model(seed=number))
    assert load_zoo_run(tmp_path)[0].seed == 10
    assert load_zoo_run(str(tmp_path / "Pendulum-v1_2"))[0].seed == 2
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(CheckpointNotFoundError):
            load_zoo_run(path)


def test_a_zip_alone(tmp_path):
    make_model(seed=4).save(tmp_path / "Pendulum-v1.zip")
    assert load_zoo_run(tmp_path / "Pendulum-v1.zip")[0].seed == 4
    make_model(seed=4).save(tmp_path / "mine.zip")
    with pytest.raises(EnvironmentNotFoundError, match="pass env="):
        load_zoo_run(tmp_path / "mine.zip")
    model, env = load_zoo_run(tmp_path / "mine", env="Pendulum-v1")
    assert isinstance(env, DummyVecEnv)
    assert model.seed == 4


def test_normalisation_is_the_runs(tmp_path):
    """Actions on raw observations equal the original's on the observations that it had normalised."""
    train_env = VecNormalize(make_vec_env("Pendulum-v1"), gamma=0.98, clip_obs=3.0)
    original = make_model(train_env).learn(150)
    run = make_run(tmp_path, config={"normalize": "{'norm_obs': True, 'norm_reward': False}"}, model=original)
    train_env.save(run / "Pendulum-v1" / "vecnormalize.pkl")
    model, env = load_zoo_run(run)
    assert isinstance(env, VecNormalize)
    assert (env.training, env.norm_reward, env.clip_obs, env.gamma) == (False, False, 3.0, 0.98)
    assert np.array_equal(env.normalize_obs(OBSERVATIONS), train_env.normalize_obs(OBSERVATIONS))
    actions, expected = (m.predict(env.normalize_obs(OBSERVATIONS))[0] for m in (model, original))
    assert np.abs(actions - expected).max() < 1e-6
    mean = env.obs_rms.mean.copy()
    evaluate_policy(model, env, 1)
    assert np.array_equal(env.obs_rms.mean, mean)
    env.training = True
    model.learn(20, reset_num_timesteps=False)
    assert not np.array_equal(env.obs_rms.mean, mean)


def test_normalisation_of_a_checkpoint(tmp_path):
    train_env = VecNormalize(make_vec_env("Pendulum-v1"))
    original = make_model(train_env, cls=DDPGPaper)
    original.learn(40, callback=CheckpointCallback(20, str(tmp_path / "Pendulum-v1_1"), save_vecnormalize=True))
    run = tmp_path / "Pendulum-v1_1"
    env = load_zoo_run(run, checkpoint=np.int64(20), env="Pendulum-v1")[1]
    later = load_zoo_run(run, checkpoint=40, env="Pendulum-v1")[1]
    assert (env.obs_rms.count, later.obs_rms.count) == (pytest.approx(21, abs=0.1), pytest.approx(41, abs=0.1))


def test_normalisation_that_is_missing_or_of_others(tmp_path):
    run = make_run(tmp_path, config={"normalize": True})
    with pytest.raises(CheckpointNotFoundError, match="vecnormalize"):
        load_zoo_run(run)
    VecNormalize(make_vec_env("MountainCarContinuous-v0")).save(run / "Pendulum-v1" / "vecnormalize.pkl")
    with pytest.raises(CheckpointError, match="statistics"):
        load_zoo_run(run)
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    assert load_zoo_run(run, env=env)[1] is env


def test_wrappers_of_the_gym_era(tmp_path):
    pytest.importorskip("sb3_contrib")
    from sb3_contrib.common.wrappers import TimeFeatureWrapper

    model = make_model(make_vec_env("Pendulum-v1", wrapper_class=TimeFeatureWrapper))
    run = make_run(tmp_path, config={"env_wrapper": "utils.wrappers.TimeFeatureWrapper"}, model=model)
    assert load_zoo_run(run)[1].observation_space.shape == (4,)


def test_frame_stack_and_env_kwargs(tmp_path):
    model = make_model(VecFrameStack(make_vec_env("Pendulum-v1"), 3))
    run = make_run(tmp_path, config={"frame_stack": 3}, args={"env_kwargs": {"g": 5.0}}, model=model)
    env = load_zoo_run(run)[1]
    assert env.observation_space.shape == (9,)
    assert env.get_attr("g") == [5.0]
    starts = [load_zoo_run(run, seed=seed)[1].reset().tolist() for seed in (0, 0, 5)]
    assert starts[0] == starts[1] != starts[2]
    # Those of the command line come first, as in the Zoo
    for number, (args, g) in enumerate({None: 5.0, 6.0: 6.0}.items(), start=2):
        kwargs = {"args": {"env_kwargs": {"g": args}}} if args else {}
        run = make_run(tmp_path, number=number, config={"env_kwargs": {"g": 5.0}}, **kwargs)
        assert load_zoo_run(run)[1].get_attr("g") == [g]


def test_classes_among_the_hyperparameters_are_text(tmp_path):
    """What ``-params "policy_kwargs:dict(activation_fn=nn.ELU)"`` leaves."""
    run = make_run(tmp_path)
    config = run / "Pendulum-v1" / "config.yml"
    config.write_text("policy_kwargs: {activation_fn: !!python/name:torch.nn.modules.activation.ELU ''}")
    assert read_yaml(config)["policy_kwargs"] == {"activation_fn": "torch.nn.modules.activation.ELU"}
    load_zoo_run(run)
    config.write_text("policy_kwargs: {activation_fn: !!python/name:os.system ''}")
    with pytest.raises(UntrustedContentError, match=r"os\.system"):
        load_zoo_run(run)


def test_the_packages_own_wrapper(tmp_path):
    def wrap(env):
        return PixelActionRepeat(env, repeat=2, size=36)

    env = make_vec_env("Pendulum-v1", wrapper_class=wrap, env_kwargs={"render_mode": "rgb_array"})
    model = DDPGPaper("CnnPolicy", env, buffer_size=10, policy_kwargs={"net_arch": [4, 4]})
    config = {"env_wrapper": [{"ddpg_ext.envs.PixelActionRepeat": {"repeat": 2, "size": 36}}]}
    run = make_run(tmp_path, config=config, model=model)
    loaded, loaded_env = load_zoo_run(run)
    assert loaded_env.envs[0].observation_space.shape == (36, 36, 6)
    assert loaded.predict(loaded_env.reset())[0].shape == (1, 1)


def test_a_file_opens_no_window(tmp_path):
    run = make_run(tmp_path, args={"env_kwargs": {"render_mode": "human"}})
    assert load_zoo_run(run)[1].render_mode == "rgb_array"


class OwnWrapper(gym.Wrapper):
    """A wrapper that a user wrote."""


def test_own_wrappers_take_permission(tmp_path):
    run = make_run(tmp_path, config={"env_wrapper": f"{OwnWrapper.__module__}.OwnWrapper"})
    with pytest.raises(UntrustedContentError, match="OwnWrapper"):
        load_zoo_run(run)
    env = load_zoo_run(run, allow=[OwnWrapper])[1]
    assert env.env_is_wrapped(OwnWrapper) == [True]


@pytest.mark.parametrize(
    ("env_id", "advice"),
    [
        ("HopperBulletEnv-v0", "pip install pybullet_envs_gymnasium"),
        ("Pendulum-v0", "env='Pendulum-v1'"),
        ("LunarLanderContinuous-v2", "env='LunarLanderContinuous-v3'"),
        ("Unheard-v3", "pass env="),
    ],
)
def test_environments_that_are_not_there(tmp_path, env_id, advice):
    run = make_run(tmp_path, env_id, model=make_model("Pendulum-v1"))
    with pytest.raises(EnvironmentNotFoundError) as caught:
        load_zoo_run(run)
    assert advice in str(caught.value)
    assert caught.value.model.predict(OBSERVATIONS)[0].shape == (5, 1)
    assert load_zoo_run(run, env="Pendulum-v1")[0].env is not None
    assert load_zoo_run(run, env=gym.make("Pendulum-v1"))[0].env is not None


def test_other_bounds_of_observations_do_not_matter(tmp_path):
    """LunarLander's observations have bounds since v3; the network sees only their shape."""
    run = make_run(tmp_path)

    class Unbounded(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

        def observation(self, observation):
            return observation

    model, env = load_zoo_run(run, env=Unbounded(gym.make("Pendulum-v1")))
    assert model.observation_space == env.observation_space
    model.learn(20, reset_num_timesteps=False)


def test_yaml_needs_an_extra(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(CheckpointError, match=r"ddpg_ext\[extra\]"):
        load_zoo_run(run)


def test_invalid_arguments_are_not_blamed_on_the_environment(tmp_path):
    run = make_run(tmp_path)
    for kwargs, error in (({"seed": -1}, InvalidArgumentError), ({"seed": "a"}, InvalidArgumentTypeError)):
        with pytest.raises(error, match="`seed`"):
            load_zoo_run(run, **kwargs)
    with pytest.raises(InvalidArgumentTypeError, match="`env_kwargs` must be a dict"):
        load_zoo_run(run, env_kwargs=3)
    with pytest.raises(CheckpointNotFoundError, match="cannot be opened: File name too long"):
        load_zoo_run("x" * 5000)
    (run / "Pendulum-v1.zip").rename(run / "one.zip")
    (run / "two.zip").write_text("")
    with pytest.raises(CheckpointNotFoundError, match=r"pass the path of one of its files: \['one.zip', 'two.zip'\]"):
        load_zoo_run(run)


@pytest.mark.parametrize("name", ["Pendulum-v1_1_0f0e8c9a-1b2c-4d3e-8f90-a1b2c3d4e5f6", "champion"])
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_run_folder_of_another_name_keeps_its_settings(tmp_path, name, checkpoint):
    """The Zoo's -uuid appends an id, and a user may rename the folder."""
    run = make_run(tmp_path, config={"policy": "MlpPolicy", "env_kwargs": {"g": 5.0}}, name="best_model")
    make_model().save(run / "Pendulum-v1.zip")
    run.rename(tmp_path / name)
    _, env = load_zoo_run(tmp_path / name, checkpoint=checkpoint)
    assert env.get_attr("g") == [5.0]


def test_a_files_own_name_comes_before_that_of_its_folder(tmp_path):
    folder = tmp_path / "agents-v2_final"
    folder.mkdir()
    make_model().save(folder / "Pendulum-v1.zip")
    _, env = load_zoo_run(folder / "Pendulum-v1.zip")
    assert env.get_attr("spec")[0].id == "Pendulum-v1"


@pytest.mark.parametrize(
    ("agent", "statistics"),
    [("ddpg_20_steps.zip", "ddpg_vecnormalize_20_steps.pkl"), ("agent.zip", "vec_normalize.pkl")],
)
def test_statistics_with_names_of_sb3(tmp_path, agent, statistics):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    make_model(env).save(tmp_path / agent)
    env.save(tmp_path / statistics)
    assert isinstance(load_zoo_run(tmp_path / agent, env="Pendulum-v1")[1], VecNormalize)


def test_statistics_with_other_names_are_not_left_out_silently(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    make_model(env).save(tmp_path / "best_model.zip")
    env.save(tmp_path / "ddpg_vecnormalize_20_steps.pkl")
    with pytest.warns(UserWarning, match=r"ddpg_vecnormalize_20_steps\.pkl"):
        load_zoo_run(tmp_path, env="Pendulum-v1")


def test_a_vec_env_wrapper_of_the_run(tmp_path):
    stacked = {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": 2}}
    run = make_run(
        tmp_path, config={"vec_env_wrapper": stacked}, model=make_model(VecFrameStack(make_vec_env("Pendulum-v1"), 2))
    )
    assert load_zoo_run(run)[1].observation_space.shape == (6,)


@pytest.mark.parametrize("name", ["mine.Scale", "stable_baselines3.common.vec_env.VecVideoRecorder"])
def test_an_unknown_vec_env_wrapper_is_refused(tmp_path, name):
    with pytest.raises(UntrustedContentError, match="not on the allow-list"):
        load_zoo_run(make_run(tmp_path, config={"vec_env_wrapper": name}))


def test_a_vec_monitor_of_the_run_is_left_out(tmp_path):
    run = make_run(tmp_path, config={"vec_env_wrapper": ["stable_baselines3.common.vec_env.VecMonitor"]})
    assert isinstance(load_zoo_run(run)[1], DummyVecEnv)


def test_the_only_checkpoint_is_the_last(tmp_path):
    make_model().save(tmp_path / "ddpg_pendulum_1000_steps.zip")
    assert load_zoo_run(tmp_path, env="Pendulum-v1", checkpoint="last")[0].gamma == 0.99


def test_an_invalid_frame_stack_is_refused(tmp_path):
    run = make_run(tmp_path, config={"frame_stack": "2"})
    with pytest.raises(
        CheckpointError, match=r"`frame_stack` in config.yml of .* must be a whole number above 0, got '2'"
    ):
        load_zoo_run(run)

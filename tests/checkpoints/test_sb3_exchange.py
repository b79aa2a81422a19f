"""Agents of SB3, of any age, as files and live: the same actions, the same optimisers, and back."""

import base64
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import cloudpickle
import gymnasium as gym
import hostile
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from toys import ChaosEnv, assert_same_arrays, recorded, weights_of

from ddpg_ext import (
    CheckpointError,
    DDPGPaper,
    InvalidArgumentTypeError,
    LinearDecay,
    ScheduledActionNoise,
    UntrustedContentError,
)
from ddpg_ext.common.checks import plain
from ddpg_ext.ddpg_paper.policies import CnnPolicy

AGENTS = Path(os.environ.get("DDPG_EXT_ZOO_AGENTS", Path(__file__).parents[3] / "shared" / "zoo_agents"))
PENDULUM = AGENTS / "ddpg" / "Pendulum-v1_1" / "Pendulum-v1.zip"


def numpy_forward(file, network, hidden):
    """The forward pass up to the last linear layer, from the tensors in an SB3 zip alone."""
    with zipfile.ZipFile(file) as archive:
        state = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    *inner, last = sorted({int(name.split(".")[2]) for name in state if name.startswith(f"{network}.")})
    for index in (*inner, last):
        weight, bias = (state[f"{network}.{index}.{part}"].numpy().astype(np.float64) for part in ("weight", "bias"))
        hidden = hidden @ weight.T + bias
        hidden = hidden if index == last else np.maximum(hidden, 0)
    return hidden


def numpy_actor(file, observations, low, high):
    return low + (np.tanh(numpy_forward(file, "actor.mu", observations.astype(np.float64))) + 1) / 2 * (high - low)


def saved(model):
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    return stream


def trained(cls, env="Pendulum-v1", steps=60, **kwargs):
    kwargs["policy_kwargs"] = {"net_arch": [16, 12], **kwargs.get("policy_kwargs", {})}
    return cls("MlpPolicy", env, learning_starts=20, buffer_size=500, batch_size=8, seed=0, **kwargs).learn(steps)


def batch(n=50):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.uniform(-1, 1, (n, 1)).astype(np.float32)


needs_agent = pytest.mark.skipif(not PENDULUM.exists(), reason="the published agent is not here")


@needs_agent
def test_the_published_agent_opens():
    observations, actions = batch()
    model = DDPGPaper.load(PENDULUM)
    expected = numpy_actor(PENDULUM, observations, -2, 2)
    assert np.abs(model.predict(observations)[0] - expected).max() < 1e-6
    with th.no_grad():
        values = model.critic(th.as_tensor(observations), th.as_tensor(actions)).numpy()
    expected = numpy_forward(PENDULUM, "critic.qf0", np.hstack([observations, actions]).astype(np.float64))
    assert np.allclose(values, expected, rtol=1e-5, atol=1e-4)
    assert all(float(entry["step"]) == 10_000 for entry in model.critic.optimizer.state.values())
    assert (model.num_timesteps, model._n_updates, model.gamma, model.batch_size) == (20_000, 10_000, 0.98, 100)
    assert model.train_freq == TrainFreq(1, TrainFrequencyUnit.EPISODE)
    assert isinstance(model.action_noise, NormalActionNoise)
    assert model.lr_schedule(0.1) == model.qf_lr_schedule(0.1) == 0.001


@needs_agent
def test_the_published_agent_trains_on():
    model = DDPGPaper.load(PENDULUM, env=gym.make("Pendulum-v1"), batch_size=8, gradient_steps=3)
    model.learning_starts = 0
    model.learn(200, reset_num_timesteps=False)
    assert model.num_timesteps == 20_200
    assert model._n_updates == 10_003


class Space:
    """Pickles as gym's spaces did: under gym's names, with gym's attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def gym_box(low, high, version):
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    attributes = {"dtype": np.dtype("float32"), "low": low, "high": high}
    attributes |= {"bounded_below": -np.inf < low, "bounded_above": np.inf > high}
    if version == "0.17":
        attributes |= {"shape": low.shape, "np_random": np.random.RandomState(1)}
    elif version == "0.21":
        attributes |= {"_shape": low.shape, "_np_random": None}
    else:  # 0.26
        attributes |= {"_shape": low.shape, "low_repr": "x", "high_repr": "y", "_np_random": np.random.default_rng(2)}
    modules = {name: types.ModuleType(name) for name in ("gym", "gym.spaces", "gym.spaces.box")}
    box = type("Box", (Space,), {"__module__": "gym.spaces.box", "__qualname__": "Box"})
    modules["gym.spaces.box"].Box = box
    try:
        sys.modules.update(modules)
        return pickle.dumps(box(**attributes), 4)
    finally:
        for name in modules:
            sys.modules.pop(name)


def gym_era_zip(obs_low, obs_high, act_low, act_high, version="0.21", learning_rate=1e-3):
    """An SB3 DDPG's file as it would have been written in the gym era, with these spaces."""
    obs_space = spaces.Box(np.float32(obs_low), np.float32(obs_high))
    act_space = spaces.Box(np.float32(act_low), np.float32(act_high))
    env = ChaosEnv(obs_space, act_space)
    noise = NormalActionNoise(np.zeros(act_space.shape), 0.1 * np.ones(act_space.shape))
    model = DDPG("MlpPolicy", env, action_noise=noise, policy_kwargs={"net_arch": [40, 30]}, buffer_size=10, seed=0)
    good = saved(model).getvalue()

    def field(pickled):
        return {":type:": "<class 'x'>", ":serialized:": base64.b64encode(pickled).decode()}

    scope = {"__name__": "__main__"}
    exec("def constant_fn(val):\n    def func(_):\n        return val\n    return func\n", scope)
    exec("def linear(v):\n    def f(progress_remaining):\n        return progress_remaining * v\n    return f\n", scope)
    exec("def get(v):\n    return lambda progress_remaining: float(v(progress_remaining))\n", scope)
    schedule = scope["linear"](1e-3) if learning_rate == "linear" else scope["constant_fn"](learning_rate)
    fields = {
        "observation_space": field(gym_box(obs_low, obs_high, version)),
        "action_space": field(gym_box(act_low, act_high, version)),
        "learning_rate": field(cloudpickle.dumps(schedule)),
        "lr_schedule": field(cloudpickle.dumps(scope["get"](schedule))),
        "_last_dones": field(cloudpickle.dumps(np.array([True]))),
        "remove_time_limit_termination": False,
    }
    return hostile.with_data(good, **fields)


STAND_INS = {
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07], [-1.0], [1.0]),
    "LunarLanderContinuous-v2": ([-np.inf] * 8, [np.inf] * 8, [-1.0] * 2, [1.0] * 2),
    "ReacherBulletEnv-v0": ([-np.inf] * 9, [np.inf] * 9, [-1.0] * 2, [1.0] * 2),
}


@pytest.mark.parametrize(("env_id", "version"), zip(STAND_INS, ["0.17", "0.21", "0.26"], strict=True))
def test_agents_of_the_gym_era_open(tmp_path, env_id, version):
    obs_low, obs_high, act_low, act_high = STAND_INS[env_id]
    path = tmp_path / f"{env_id}.zip"
    path.write_bytes(gym_era_zip(*STAND_INS[env_id], version=version))
    model = DDPGPaper.load(path)
    assert model.observation_space == spaces.Box(np.float32(obs_low), np.float32(obs_high))
    observations = np.random.default_rng(0).normal(size=(20, len(obs_low))).astype(np.float32)
    expected = numpy_actor(path, observations, np.array(act_low), np.array(act_high))
    assert np.abs(model.predict(observations)[0] - expected).max() < 1e-6
    # SB3 itself says that there is no gym
    with pytest.raises(ModuleNotFoundError, match="gym"):
        DDPG.load(path)


def test_schedules_of_the_gym_era(tmp_path):
    path = tmp_path / "agent.zip"
    path.write_bytes(gym_era_zip(*STAND_INS["MountainCarContinuous-v0"], learning_rate="linear"))
    model = DDPGPaper.load(path, env=gym.make("MountainCarContinuous-v0"))
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    model.learn(5)


@pytest.mark.parametrize("cls", [DDPG, TD3])
@pytest.mark.parametrize("live", [False, True])
def test_predictions_and_values_are_the_originals(tmp_path, cls, live):
    original = trained(cls, policy_kwargs={"activation_fn": th.nn.Tanh})
    observations, actions = batch()
    model = DDPGPaper.from_sb3(original) if live else DDPGPaper.load(saved(original))
    assert np.abs(model.predict(observations)[0] - original.predict(observations)[0]).max() < 1e-6
    with th.no_grad():
        pair = th.as_tensor(observations), th.as_tensor(actions)
        for critic in ("critic", "critic_target"):
            theirs = getattr(original, critic).q1_forward(*pair)
            assert th.allclose(getattr(model, critic)(*pair), theirs, atol=1e-6)


@pytest.mark.parametrize("live", [False, True])
def test_one_update_after_the_move_is_the_originals(live):
    """Weights, optimisers and targets: the same minibatch moves the converted model as it moves SB3's DDPG."""
    original = trained(DDPG)
    model = DDPGPaper.from_sb3(original) if live else DDPGPaper.load(saved(original))
    rng = np.random.default_rng(3)
    buffer = ReplayBuffer(32, original.observation_space, original.action_space)
    for _ in range(32):
        obs, next_obs, action = rng.normal(size=(1, 3)), rng.normal(size=(1, 3)), rng.uniform(-1, 1, (1, 1))
        buffer.add(obs, next_obs, action, rng.normal(size=1), rng.random(1) < 0.2, [{}])
    observations = batch()[0]
    before = original.predict(observations)[0]
    for either in (original, model):
        either.replay_buffer = buffer
        either._current_progress_remaining = 0.5
        recorded(either)
        np.random.seed(0)
        # SB3 draws noise for its target actions, and clips it to nothing
        either.train(gradient_steps=3, batch_size=8)
    after = original.predict(observations)[0]
    assert np.abs(after - before).max() > 1e-4
    assert np.abs(model.predict(observations)[0] - after).max() < 1e-5


def test_training_a_former_td3_says_what_is_lost():
    model = DDPGPaper.from_sb3(trained(TD3))
    assert DDPGPaper.load(saved(model))._import_note == model._import_note
    with pytest.warns(UserWarning, match=r"critics.*policy delay.*target actions"):
        model.learn(5, reset_num_timesteps=False)


def test_shared_and_separate_networks_of_images():
    space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    for shared in (False, True):
        kwargs = {"net_arch": [8], "share_features_extractor": shared, "features_extractor_kwargs": {"features_dim": 6}}
        settings = {"policy_kwargs": kwargs, "buffer_size": 20, "learning_starts": 5, "batch_size": 2}
        original = DDPG("CnnPolicy", ChaosEnv(space), **settings).learn(9)
        observations = np.random.default_rng(0).integers(0, 255, (4, 3, 36, 36)).astype(np.uint8)
        for model in (DDPGPaper.load(saved(original)), DDPGPaper.from_sb3(original)):
            assert model.policy.share_features_extractor is shared
            assert np.abs(model.predict(observations)[0] - original.predict(observations)[0]).max() < 1e-6


def test_there_and_back():
    original = trained(DDPG)
    model = DDPGPaper.from_sb3(original)
    assert model.env is original.env
    assert model.replay_buffer is original.replay_buffer
    assert model.num_timesteps == original.num_timesteps
    back = model.to_sb3_ddpg()
    assert type(back) is DDPG
    assert_same_arrays(weights_of(original), weights_of(back))
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == original.num_timesteps + 10
    back.learn(10, reset_num_timesteps=False)


def test_back_only_where_sb3_has_the_networks():
    with pytest.raises(CheckpointError, match="batch_norm"):
        DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=10).to_sb3_ddpg()
    kwargs = {"batch_norm": False, "action_layer": 1}
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=kwargs)
    with pytest.warns(UserWarning, match="one learning rate"):
        back = model.to_sb3_ddpg()
    observations = batch()[0]
    assert np.abs(back.predict(observations)[0] - model.predict(observations)[0]).max() < 1e-6


def test_other_algorithms_are_refused():
    original = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [4]})
    with pytest.raises(InvalidArgumentTypeError, match="SAC"):
        DDPGPaper.from_sb3(original)
    with pytest.raises(CheckpointError, match="SACPolicy; only agents of DDPGPaper, and of SB3's DDPG and TD3"):
        DDPGPaper.load(saved(original))


def test_numpy_numbers_of_an_optimizer_need_trust(tmp_path):
    """SB3 writes them into the file of the weights, where torch's reader refuses them."""
    kwargs = dict(net_arch=[8, 8], optimizer_kwargs=dict(eps=np.float64(1e-5)))
    DDPG("MlpPolicy", "Pendulum-v1", buffer_size=100, device="cpu", policy_kwargs=kwargs).save(tmp_path / "m")
    with pytest.raises(UntrustedContentError, match="trusted=True"):
        DDPGPaper.load(tmp_path / "m")
    loaded = DDPGPaper.load(tmp_path / "m", trusted=True)
    assert loaded.actor.optimizer.param_groups[0]["eps"] == 1e-5
    loaded.save(tmp_path / "again")
    DDPGPaper.load(tmp_path / "again")


OPTIMIZER_NUMBERS = [
    {"eps": np.float32(0.25)},
    {"eps": th.tensor(0.25)},
    {"amsgrad": np.True_},
    {"betas": (th.tensor(0.5), th.tensor(0.75)), "foreach": False},
]


@pytest.mark.parametrize("kwargs", OPTIMIZER_NUMBERS, ids=str)
def test_numbers_of_an_optimizer_become_plain(tmp_path, kwargs):
    policy_kwargs = {"net_arch": [8, 8], "optimizer_kwargs": kwargs}
    original = trained(DDPG, policy_kwargs=policy_kwargs)
    original.save(tmp_path / "m")
    for model in (DDPGPaper.from_sb3(original), DDPGPaper.load(tmp_path / "m", "Pendulum-v1", trusted=True)):
        group = model.learn(10, reset_num_timesteps=False).critic.optimizer.param_groups[0]
        assert {key: group[key] for key in kwargs} == plain(kwargs)
        assert all(type(part) in (float, bool) for key in kwargs for part in np.atleast_1d(group[key]).tolist())
        model.save(tmp_path / "again")
        DDPGPaper.load(tmp_path / "again")


class NormalisingExtractor(FlattenExtractor):
    """Running averages, and a constant that is no parameter."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(observation_space.shape[0])
        self.linear = th.nn.Linear(observation_space.shape[0], self.features_dim)
        self.register_buffer("offset", th.ones(1))

    def forward(self, observations):
        return self.linear(self.norm(observations.flatten(1))) + self.offset


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_a_features_extractor_with_buffers(live, shared):
    kwargs = {"features_extractor_class": NormalisingExtractor, "share_features_extractor": shared}
    original = trained(DDPG, policy_kwargs=kwargs)
    if live:
        model = DDPGPaper.from_sb3(original)
    else:
        model = DDPGPaper.load(saved(original), env=original.env, allow=[NormalisingExtractor])
    observations = batch()[0]
    assert np.abs(original.predict(observations)[0] - model.predict(observations)[0]).max() < 1e-6
    theirs, ours = (algorithm.actor.optimizer.state_dict()["state"] for algorithm in (original, model))
    assert_same_arrays(*({i: entry["exp_avg"].numpy() for i, entry in state.items()} for state in (theirs, ours)))
    model.learn(10, reset_num_timesteps=False)


def test_the_buffers_own_arguments_do_not_reach_sb3():
    kwargs = {"batch_norm": False, "action_layer": 1}
    model = trained(
        DDPGPaper, policy_kwargs=kwargs, qf_weight_decay=0, qf_learning_rate=1e-4, replay_buffer_kwargs={"seed": 1}
    )
    back = DDPG.load(saved(model.to_sb3_ddpg()), env=model.env)
    assert back.replay_buffer_kwargs == {}
    back.learn(10)


def test_n_step_returns_of_dicts_do_not_exist_in_sb3():
    kwargs = {"net_arch": [4], "batch_norm": False, "action_layer": 1}
    env = ChaosEnv(spaces.Dict({"a": spaces.Box(-1, 1, (2,))}))
    model = DDPGPaper("MultiInputPolicy", env, buffer_size=10, n_steps=3, policy_kwargs=kwargs)
    with pytest.raises(CheckpointError, match=r"no n-step returns for Dict observations, .* n_steps=3"):
        model.to_sb3_ddpg()


def test_the_weight_decay_of_adamw_does_not_reach_sb3():
    kwargs = {"batch_norm": False, "action_layer": 1, "optimizer_class": th.optim.AdamW}
    model = trained(DDPGPaper, policy_kwargs=kwargs, qf_weight_decay=0, qf_learning_rate=1e-4)
    back = model.to_sb3_ddpg()
    assert [net.optimizer.param_groups[0]["weight_decay"] for net in (back.actor, back.critic)] == [0, 0]


def test_n_step_files_take_new_values(tmp_path):
    """SB3 stores the model's values among the buffer's arguments, too."""
    original = trained(DDPG, n_steps=3)
    for change, expected in (({}, (3, 0.99)), ({"n_steps": 1}, (1, 0.99)), ({"gamma": 0.9}, (3, 0.9))):
        for kwargs in (change, {"custom_objects": change}):
            model = DDPGPaper.load(saved(original), env=original.env, **kwargs)
            assert (model.n_steps, model.gamma) == expected
            assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == expected
            model.learn(30)
    assert DDPGPaper.load(saved(original), custom_objects={"replay_buffer_kwargs": {}}).n_steps == 3


def test_the_schedule_of_parallel_noise_continues():
    noise = ScheduledActionNoise(NormalActionNoise(np.zeros(1), np.ones(1)), LinearDecay(100))
    original = trained(DDPG, env=make_vec_env("Pendulum-v1", 2), action_noise=noise)
    steps = original.action_noise.noises[0].n_steps
    assert steps > 0
    model = DDPGPaper.from_sb3(original).learn(2, reset_num_timesteps=False)
    assert [part.n_steps for part in model.action_noise.noises] == [steps + 1] * 2


def test_an_own_policy_of_images_stays_one():
    class OwnCnnPolicy(DDPG.policy_aliases["CnnPolicy"]):
        pass

    env = ChaosEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))
    original = DDPG(OwnCnnPolicy, env, buffer_size=10, policy_kwargs={"net_arch": [4]})
    assert type(DDPGPaper.from_sb3(original).policy) is CnnPolicy

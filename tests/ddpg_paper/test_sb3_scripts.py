"""A script made for SB3's DDPG runs: its policies, arguments, environments and habits."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer, ddpg, td3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.noise import NormalActionNoise
from toy_envs import ToyEnv, toy_vec_env
from toys import ChaosEnv

from ddpg_ext import DDPGPaper, InvalidArgumentError, InvalidArgumentTypeError, SnapshotCallback
from ddpg_ext.ddpg_paper import CnnPolicy, MlpPolicy, MultiInputPolicy


def make_model(policy="MlpPolicy", env=None, cls=DDPGPaper, **kwargs):
    settings = {"buffer_size": 500, "batch_size": 8, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return cls(policy, ToyEnv() if env is None else env, **{**settings, **kwargs})


@pytest.mark.parametrize(
    ("net_arch", "action_layer"),
    [([64], 1), ([], 1), ({"pi": [], "qf": [64]}, 1), ({"pi": [64], "qf": []}, 1), ({"pi": [8], "qf": [8, 8]}, 2)],
)
def test_few_hidden_layers(net_arch, action_layer, tmp_path):
    """The action enters at the last hidden layer if there are fewer than ``default_action_layer``."""
    model = make_model(policy_kwargs={"net_arch": net_arch}).learn(20)
    assert model.critic.action_layer == action_layer
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").critic.action_layer == action_layer


@pytest.mark.parametrize("sb3_class", [DDPG, td3.TD3])
def test_a_dict_that_sb3_has_seen(sb3_class, tmp_path):
    shared = {"net_arch": [8, 8]}
    sb3_class("MlpPolicy", ToyEnv(), policy_kwargs=shared, buffer_size=10)
    shared["use_sde"] = False  # as SB3's SAC writes
    before = dict(shared)
    model = make_model(policy_kwargs=shared).learn(20)
    assert shared == before
    model.save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", policy_kwargs=shared, device="cpu")


@pytest.mark.parametrize(
    ("name", "policy", "env"),
    [
        ("MlpPolicy", MlpPolicy, ToyEnv()),
        ("CnnPolicy", CnnPolicy, FakeImageEnv(2, 40, 40, 2, discrete=False)),
        ("MultiInputPolicy", MultiInputPolicy, ToyEnv(dict_obs=True)),
    ],
)
def test_policies_of_sb3(name, policy, env, tmp_path):
    assert make_model(getattr(td3, name), env).policy_class is policy
    model = make_model(getattr(ddpg, name), env)
    assert model.policy_class is policy
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").policy_class is policy


def test_sizes_of_features():
    image = gym.spaces.Box(0, 255, (2, 40, 40), np.uint8)
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 16}}
    model = make_model("CnnPolicy", ChaosEnv(image), policy_kwargs=kwargs).learn(20)
    features = model.actor.extract_features(th.zeros(1, 2, 40, 40), model.actor.features_extractor)
    assert features.shape == (1, 16)
    assert (features >= 0).all()
    space = gym.spaces.Dict(image=image, x=gym.spaces.Box(-1, 1, (3,)))
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 16, "normalized_image": False}}
    model = make_model("MultiInputPolicy", ChaosEnv(space), policy_kwargs=kwargs)
    assert model.actor.features_extractor.features_dim == 16 + 3


@pytest.mark.parametrize("n_envs", [1, 3])
def test_noise_of_one_number(n_envs):
    noise = NormalActionNoise(np.full(1, 0.5), np.zeros(1))
    model = make_model(env=toy_vec_env(n_envs), action_noise=noise, learning_starts=1000).learn(12)
    policy_actions = model.policy.scaled_actions(model.replay_buffer.sample(50).observations.numpy())
    # The noise is the same in both dimensions, and the untrained policy's actions are close to 0
    assert np.abs(policy_actions).max() < 0.2
    assert np.abs(model.replay_buffer.sample(50).actions.numpy() - 0.5).max() < 0.2


def test_batch_norm_counts_nothing_that_stands_still():
    model = make_model()
    state = model.policy.state_dict()
    assert not [name for name in state if "num_batches_tracked" in name]
    # Files of earlier versions have the count
    state |= {name.replace("running_mean", "num_batches_tracked"): th.tensor(0) for name in state if "mean" in name}
    model.policy.load_state_dict(state)


@pytest.mark.parametrize("how", ["load", "resume", "set_env"])
def test_an_id_is_an_environment(how, tmp_path):
    model = make_model(env="Pendulum-v1")
    if how == "resume":
        model.learn(210, callback=SnapshotCallback(tmp_path, every=200))
        model = DDPGPaper.resume(tmp_path, "Pendulum-v1", device="cpu")
    elif how == "load":
        model.save(tmp_path / "model")
        model = DDPGPaper.load(tmp_path / "model", env="Pendulum-v1", device="cpu")
    else:
        model.set_env("Pendulum-v1")
    assert model.env.num_envs == 1
    model.learn(10, reset_num_timesteps=False)


def test_learning_without_an_environment(tmp_path):
    model = make_model()
    with pytest.raises(InvalidArgumentTypeError, match="`env` must be an environment, a VecEnv or an id, got 3"):
        model.set_env(3)
    model.save(tmp_path / "model")
    with pytest.raises(
        InvalidArgumentError, match="no environment to learn in; call `set_env`, or load the model with `env=`"
    ):
        DDPGPaper.load(tmp_path / "model", device="cpu").learn(10)


def test_a_deleted_replay_buffer(tmp_path):
    model = make_model().learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    del model.replay_buffer
    model.save(tmp_path / "model")
    model.set_env(ToyEnv())
    model.set_random_seed(1)
    with pytest.raises(InvalidArgumentTypeError, match="no replay buffer to save"):
        model.save_replay_buffer(tmp_path / "none")
    DDPGPaper.load(tmp_path / "model", env=ToyEnv(), device="cpu").learn(10)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 20
    del model.replay_buffer
    assert model.learn(10, reset_num_timesteps=False).replay_buffer.size() == 10


def test_a_buffer_moves_with_the_device(tmp_path):
    model = make_model(replay_buffer_class=ReplayBuffer).learn(20)
    model.replay_buffer.device = th.device("meta")  # as if it were another device
    model.save(tmp_path / "model", include=["replay_buffer"])
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", env=ToyEnv())
    assert loaded.replay_buffer.device == th.device("cpu")
    assert loaded.replay_buffer.sample(4).observations.device == th.device("cpu")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.device == th.device("cpu")


class Generous(BitFlippingEnv):
    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.full(len(achieved_goal), 7.0, dtype=np.float32)


def test_hindsight_asks_the_environment_that_was_set():
    def env(env_class):
        return env_class(n_bits=4, continuous=True, max_steps=4)

    model = make_model("MultiInputPolicy", env(BitFlippingEnv), replay_buffer_class=HerReplayBuffer, learning_starts=99)
    model.learn(20)
    model.set_env(env(Generous))
    rewards = model.replay_buffer.sample(100).rewards
    assert (rewards == 7).float().mean() > 0.5


@pytest.mark.parametrize(
    ("keyword", "cure"),
    [
        ("critic_learning_rate", "did you mean 'qf_learning_rate'"),
        ("actor_lr", "did you mean 'learning_rate'"),
        ("buffersize", "did you mean 'buffer_size'"),
        ("net_arch", "pass `policy_kwargs=dict(net_arch=...)`"),
        ("q", "known: '"),
    ],
)
def test_misspelt_keyword(keyword, cure, tmp_path):
    class Mine(DDPGPaper):
        def __init__(self, *args, extra=1, **kwargs):
            super().__init__(*args, **kwargs)

    make_model().save(tmp_path / "model")
    makers = {
        "DDPGPaper": make_model,
        "Mine": lambda **kwargs: make_model(cls=Mine, **kwargs),
        r"load\(\)": lambda **kwargs: DDPGPaper.load(tmp_path / "model", **kwargs),
    }
    for name, maker in makers.items():
        with pytest.raises(InvalidArgumentTypeError, match=f"{name} got the keyword '{keyword}'") as caught:
            maker(**{keyword: 1})
        assert cure.lower() in str(caught.value).lower()


def test_what_is_no_callback():
    for callback in (CheckpointCallback, [CheckpointCallback], 3, [lambda *args: True], (None,)):
        with pytest.raises(InvalidArgumentTypeError, match="`callback` must be"):
            make_model().learn(10, callback=callback)


@pytest.mark.skipif(th.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.warns(UserWarning, match="torch finds no GPU for `device='cuda:0'`; the model is on the CPU") as caught:
        model = make_model(device="cuda:0")
    assert len(caught) == 1
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="no GPU") as caught:
        DDPGPaper.load(tmp_path / "model", device="cuda")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(device="auto")

"""Small environments with known answers, and a small model, for the tests of SB3's machinery."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper

UNIT_BOX = spaces.Box(-1, 1, (1,), np.float32)


class CountingEnv(gym.Env):
    """A script rather than a task: observation (env_index, episode, step), reward ``env_index + reward``."""

    def __init__(self, length=10, terminates=False, reward=1.0, action_space=UNIT_BOX, env_index=0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space, self.env_index = action_space, env_index
        self.length, self.terminates, self.reward = length, terminates, reward
        self.episode = -1
        self.actions = []

    def _observation(self):
        return np.array([self.env_index, self.episode, self.count], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action.copy())
        self.count += 1
        over = self.count >= self.length
        obs, reward = self._observation(), self.env_index + self.reward
        return obs, reward, over and self.terminates, over and not self.terminates, {}


class PointEnv(ToyEnv):
    """Two observations, two actions, 25 steps, cut off rather than ended."""

    def __init__(self):
        super().__init__(2, 2, episode_length=25)


class ChaosEnv(gym.Env):
    """Samples of any observation space, which it remembers by episode; reward 1 for a first action above 0."""

    def __init__(self, observation_space, action_space=UNIT_BOX, length=20):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.episodes = []

    def _observation(self):
        observation = self.observation_space.sample()
        self.episodes[-1].append(observation)
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        self.episodes.append([])
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.count += 1
        return self._observation(), float(action.flat[0] > 0), False, self.count >= self.length, {}


class LinearExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: gym.Space, features_dim: int = 5, scale: float = 1.0) -> None:
        super().__init__(observation_space, features_dim)
        self.scale = scale
        self.linear = th.nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.scale * self.linear(observations)


class Records(KVWriter):
    """A logger's output kept in memory: a list of (step, values)."""

    def __init__(self) -> None:
        self.dumps: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.dumps.append((step, dict(key_values)))

    def close(self) -> None:
        pass


def small_model(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> DDPGPaper:
    """DDPGPaper with two layers of 16 on the CPU, minibatches of 8 and a small buffer, unless told otherwise."""
    settings: dict[str, Any] = {"batch_size": 8, "buffer_size": 1000, "seed": 0, "device": "cpu"}
    settings["policy_kwargs"] = {"net_arch": [16, 16], **kwargs.pop("policy_kwargs", {})}
    return DDPGPaper(policy, PointEnv() if env is None else env, **{**settings, **kwargs})


def recorded(model: DDPGPaper) -> Records:
    """Give the model a logger that keeps everything in memory."""
    records = Records()
    model.set_logger(Logger(folder=None, output_formats=[records]))
    return records


def weights(module: th.nn.Module) -> dict[str, th.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def weights_of(model: DDPGPaper) -> dict[str, np.ndarray]:
    """Return all numbers that a model has learned, by name: networks, running averages and optimisers."""
    arrays = {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}
    for name in ("actor", "critic"):
        network = getattr(model, name)
        for param_name, param in network.named_parameters():
            for key, value in network.optimizer.state.get(param, {}).items():
                arrays[f"{name}.optimizer.{param_name}.{key}"] = value.numpy().copy()
    return arrays


def same(left: dict[str, th.Tensor], right: dict[str, th.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return left.keys() == right.keys() and all(th.equal(left[name], right[name]) for name in left)


def drawn_next(model: DDPGPaper) -> dict[str, np.ndarray]:
    """What the generators of a run give next, a minibatch among it."""
    batch = [np.ravel(part) for part in model.replay_buffer.sample(100) if isinstance(part, th.Tensor | np.ndarray)]
    random = [np.random.random(), th.rand(()).item(), *np.ravel(model.action_space.sample())]
    return {"batch": np.concatenate(batch), "random": np.array(random)}


def state_of(model: DDPGPaper) -> dict[str, np.ndarray]:
    """What a run has made, as arrays: networks, optimisers, statistics, counts, episodes, observations."""
    arrays = {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}
    for name in ("actor", "critic"):
        for index, entry in getattr(model, name).optimizer.state_dict()["state"].items():
            arrays |= {f"{name}.optimizer.{index}.{key}": value.numpy().copy() for key, value in entry.items()}
    if isinstance(model.env, VecNormalize):
        for name, statistics in (("obs", model.env.obs_rms), ("ret", model.env.ret_rms)):
            arrays |= {f"{name}.mean": np.array(statistics.mean), f"{name}.var": np.array(statistics.var)}
        arrays["returns"] = model.env.returns.copy()
    arrays["counts"] = np.array([model.num_timesteps, model._n_updates, model._episode_num])
    arrays["episodes"] = np.array([[info["r"], info["l"]] for info in model.ep_info_buffer])
    last = model._last_obs if isinstance(model._last_obs, dict) else {"": model._last_obs}
    return arrays | {f"last.{name}": part.copy() for name, part in last.items()}


def assert_same_arrays(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Both have the same names, and the arrays are equal bit for bit."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []


def counting_envs(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    """A DummyVecEnv of CountingEnvs that tell themselves apart by their index."""
    return DummyVecEnv([lambda i=i: CountingEnv(env_index=i, **kwargs) for i in range(n_envs)])


def first(buffer: ReplayBuffer, n: int) -> ReplayBufferSamples:
    """The first n transitions of a buffer for a single environment, in their order."""
    assert buffer.n_envs == 1
    return buffer._get_samples(np.arange(n))


def drawn(buffer: ReplayBuffer) -> dict[tuple[int, int, int], tuple[list[float], list[float], float, float]]:
    """
    Return what a buffer holds of CountingEnvs, drawn until each transition has turned up.

    By (environment, episode, step): (action, next observation, done, reward).
    """
    transitions = {}
    n_stored = buffer.size() * buffer.n_envs
    for _ in range(200):
        batch = buffer.sample(n_stored)
        fields = (batch.actions, batch.next_observations, batch.dones[:, 0], batch.rewards[:, 0])
        for observation, *transition in zip(*(field.tolist() for field in (batch.observations, *fields)), strict=True):
            # What is drawn twice is the same both times
            assert transitions.setdefault(tuple(map(int, observation)), tuple(transition)) == tuple(transition)
        if len(transitions) == n_stored:
            return transitions
    raise AssertionError(f"{n_stored} transitions are stored, {len(transitions)} were drawn")

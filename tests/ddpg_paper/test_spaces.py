"""Every observation and action space that SB3's DDPG takes, with the mapping of actions checked at both ends."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from toys import ChaosEnv, CountingEnv, first, small_model

from ddpg_ext import DDPGPaper

OBSERVATIONS = {
    "float32": spaces.Box(-1, 1, (3,), np.float32),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "matrix": spaces.Box(-1, 1, (3, 4), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "int": spaces.Box(-5, 5, (2,), np.int32),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([4, 3]),
    "multi-binary": spaces.MultiBinary(8),
    "multi-binary-2d": spaces.MultiBinary((3, 2)),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
}

ACTIONS = {
    "unit": spaces.Box(-1, 1, (2,), np.float32),
    "scaled": spaces.Box(-2, 2, (1,), np.float32),
    "one-sided": spaces.Box(0, 5, (1,), np.float32),
    "lopsided": spaces.Box(np.array([-3, 10], np.float32), np.array([1, 11], np.float32)),
    "float64": spaces.Box(-1, 3, (2,), np.float64),
    "matrix": spaces.Box(-2, 1, (2, 3), np.float32),
    "matrix-float64": spaces.Box(np.zeros((2, 2)), np.array([[1.0, 2.0], [3.0, 4.0]]), dtype=np.float64),
}


def expected_input(space: spaces.Space, observation: np.ndarray) -> np.ndarray:
    """What the networks should see: one-hot numbers, images in [0, 1], all else as it is, and flat."""
    if isinstance(space, spaces.Discrete):
        return np.eye(space.n)[observation]
    if isinstance(space, spaces.MultiDiscrete):
        return np.concatenate([np.eye(n)[i] for n, i in zip(space.nvec, observation, strict=True)])
    if space.dtype == np.uint8:
        return observation.flatten() / 255
    return np.asarray(observation, dtype=np.float64).flatten()


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_spaces(name):
    """The networks see an observation's documented encoding, the buffer keeps it unchanged, and learning runs."""
    space = OBSERVATIONS[name]
    env = ChaosEnv(space)
    model = small_model(env=env)
    if name == "image":  # SB3 would stack and transpose pictures for a CnnPolicy; a matrix of bytes is flattened
        assert model.observation_space.shape == (1, 36, 36)
    model.learn(40)
    assert model._n_updates == 40 - 7

    seen: list[th.Tensor] = []
    model.actor.mu.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    observation = space.sample()
    action, _ = model.predict(observation)
    assert action.shape == (1,)
    assert seen[0].shape == (1, get_flattened_obs_dim(space))
    np.testing.assert_allclose(seen[0].numpy()[0], expected_input(space, observation), atol=1e-6)

    batch, _ = model.predict(np.stack([observation, observation]))
    assert batch.shape == (2, 1)
    np.testing.assert_allclose(batch, [action, action], rtol=1e-5)

    # Of two episodes of 20 steps; float64 is stored as float32, which is all that the networks see
    stored = first(model.replay_buffer, 40)
    for values, offset in ((stored.observations, 0), (stored.next_observations, 1)):
        given = np.concatenate([episode[offset : offset + 20] for episode in env.episodes[:2]])
        as_stored = given.astype(np.float32) if given.dtype == np.float64 else given
        np.testing.assert_array_equal(values.numpy().reshape(as_stored.shape), as_stored)


@pytest.mark.parametrize("name", ACTIONS)
def test_action_spaces(name):
    """What the environment gets is the stored action in [-1, 1], mapped linearly onto the bounds."""
    space = ACTIONS[name]
    env = CountingEnv(action_space=space)
    model = small_model(env=env).learn(60)
    stored = first(model.replay_buffer, 60).actions.numpy().astype(np.float64)
    assert (np.abs(stored) <= 1).all()
    assert stored.std() > 0.1  # the noise is in there
    low, high = space.low.flatten().astype(np.float64), space.high.flatten().astype(np.float64)
    expected = low + (stored + 1) / 2 * (high - low)
    np.testing.assert_allclose(np.stack(env.actions).reshape(60, -1), expected, atol=1e-5)
    assert all(space.contains(action) for action in env.actions)

    action, _ = model.predict(env.reset()[0])
    assert action.shape == space.shape
    assert action.dtype == space.dtype
    assert space.contains(action)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_saturated_actor_reaches_the_bounds_and_not_beyond(name, sign):
    space = ACTIONS[name]
    model = small_model(env=CountingEnv(action_space=space))
    with th.no_grad():
        list(model.actor.mu.children())[-2].bias.fill_(sign * 100.0)
    action, _ = model.predict(np.zeros(3, np.float32))
    np.testing.assert_array_equal(action, space.low if sign < 0 else space.high)
    # Noise on top of it is clipped
    model.learn(20)
    assert first(model.replay_buffer, 20).actions.abs().max() <= 1


def test_it_learns_to_repeat_what_it_sees():
    """SB3's smallest task: reward 1 for an action within 0.5 of the observation, 100 steps an episode."""
    env = IdentityEnvBox(eps=0.5)
    env.action_space.seed(0)
    model = DDPGPaper(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.95,
        buffer_size=1000,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [64, 64]},
    )
    before, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    model.learn(1000)
    after, _ = evaluate_policy(model, env, n_eval_episodes=20, warn=False)
    assert before < 75
    assert after > 90

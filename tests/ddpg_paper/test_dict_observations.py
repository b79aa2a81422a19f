"""Dict observations: MultiInputPolicy, alone and under SB3's wrappers."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from toys import ChaosEnv, PointEnv, first, same, small_model, weights

from ddpg_ext.buffers import PackedReplayBuffer

MIXED = {
    "img": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "vec": spaces.Box(-1, 1, (2,), np.float32),
    "kind": spaces.Discrete(4),
}
CNN = {
    "features_extractor_kwargs": {
        "cnn_kwargs": {"n_filters": 16, "kernel_sizes": [8, 4], "strides": [4, 5], "paddings": [0, 0]}
    }
}


class InDict(gym.ObservationWrapper):
    """The observation under the key "vec"."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"vec": env.observation_space})

    def observation(self, observation):
        return {"vec": observation}


def test_a_dict_of_one_vector_learns_as_the_vector():
    """
    Same seed, task, executor and default buffer, with and without the Dict around it: the same, bit for bit.

    The rows of a vector get the place in memory that those of a Dict have: the order of sums follows from it.
    """

    class Contiguous(PackedReplayBuffer):
        def sample(self, batch_size, env=None):
            batch = super().sample(batch_size, env)
            both = (batch.observations.contiguous(), batch.next_observations.contiguous())
            return batch._replace(observations=both[0], next_observations=both[1])

    flat = small_model(env=PointEnv(), executor="eager", replay_buffer_class=Contiguous).learn(60)
    in_dict = small_model(env=InDict(PointEnv()), policy="MultiInputPolicy").learn(60)
    assert type(in_dict.replay_buffer) is PackedReplayBuffer
    assert same(weights(flat.policy), weights(in_dict.policy))
    observation = np.array([0.3, -0.2], np.float32)
    np.testing.assert_array_equal(flat.predict(observation)[0], in_dict.predict({"vec": observation})[0])


@pytest.mark.parametrize("shape", [(1, 36, 36), (36, 36, 1)])
def test_images_vectors_and_numbers_together(shape):
    """An image becomes 16 features, a vector itself, a number its one-hot code: 22 in all, and learning runs."""
    env = ChaosEnv(spaces.Dict({**MIXED, "img": spaces.Box(0, 255, shape, np.uint8)}))
    model = small_model(env, "MultiInputPolicy", policy_kwargs={**CNN, "final_init": None, "batch_norm": False})
    space = model.observation_space
    assert space["img"].shape == (1, 36, 36)  # SB3 puts channels first
    assert model.actor.features_dim == 16 + 2 + 4
    # Changing any single entry changes the action
    space.seed(0)
    observation, other = space.sample(), space.sample()
    while observation["kind"] == other["kind"]:
        other = space.sample()
    action, _ = model.predict(observation)
    for key in space.spaces:
        assert not np.array_equal(action, model.predict({**observation, key: other[key]})[0]), key
    before = weights(model.policy)
    model.learn(16)
    moved = [name for name, value in weights(model.policy).items() if not th.equal(before[name], value)]
    # Both networks' convolutions learn, each its own
    for network in ("actor", "critic"):
        assert any(name.startswith(f"{network}.features_extractor.extractors.img.cnn") for name in moved)
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)


def test_frame_stack():
    """Three frames: three channels, three vectors, and the last of them is the newest."""
    space = spaces.Dict({"img": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vec": MIXED["vec"]})
    env = DummyVecEnv([lambda: ChaosEnv(space)])
    stacked = VecFrameStack(env, n_stack=3, channels_order={"vec": None, "img": "last"})
    model = small_model(env=stacked, policy="MultiInputPolicy", policy_kwargs=CNN, train_freq=4)
    assert model.observation_space["img"].shape == (3, 36, 36)
    assert model.actor.features_dim == 16 + 3 * 2
    model.learn(24)
    vec = first(model.replay_buffer, 20).observations["vec"].numpy()
    # Within the first episode (20 steps) each stack is the one before it, moved by one frame
    np.testing.assert_array_equal(vec[1:, :4], vec[:-1, 2:])
    assert not vec[0, :4].any()
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)

"""Every observation and action space, in every form that an environment may give, and Dict observations."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from toys import ChaosEnv, CountingEnv, PointEnv, first, same, small_model, weights

from ddpg_ext import DDPGPaper, UnsupportedSpaceError
from ddpg_ext.buffers import PackedReplayBuffer

OBSERVATIONS = {
    "float32": spaces.Box(-1, 1, (3,), np.float32),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "matrix": spaces.Box(-1, 1, (3, 4), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "int": spaces.Box(-5, 5, (2,), np.int32),
    "scalar": spaces.Box(-1, 1, (), np.float64),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([4, 3]),
    "multi-binary": spaces.MultiBinary(8),
    "multi-binary-2d": spaces.MultiBinary((3, 2)),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
}

#: keys of Dict observations that torch does not take as names of modules, and some that look like their substitutes
KEYS = ["a.b", "a_b", "a_b_", "type", "type_", "", "_", "forward", "training", "x/y", "1", "action", "é"]

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
    assert (action.shape, action.dtype) == (space.shape, space.dtype)
    assert space.contains(action)
    # A saturated actor reaches the bounds, and noise on top of it is clipped
    for sign, bound in ((-1, space.low), (1, space.high)):
        with th.no_grad():
            list(model.actor.mu.children())[-2].bias.fill_(sign * 100.0)
        np.testing.assert_array_equal(model.predict(np.zeros(3, np.float32))[0], bound)
    model.learn(20, reset_num_timesteps=False)
    assert first(model.replay_buffer, 80).actions.abs().max() <= 1


def test_it_learns_to_repeat_what_it_sees():
    """SB3's smallest task: reward 1 for an action within 0.5 of the observation, 100 steps an episode."""
    env = IdentityEnvBox(eps=0.5)
    env.action_space.seed(0)
    policy_kwargs = {"net_arch": [64, 64]}
    model = small_model(env, learning_rate=1e-3, gamma=0.95, batch_size=64, policy_kwargs=policy_kwargs)
    before, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    model.learn(700)
    after, _ = evaluate_policy(model, env, n_eval_episodes=20, warn=False)
    assert before < 75
    assert after > 90


#: how environments give observations that are not arrays of the space's type
FORMS = {
    "objects": lambda x: np.asarray(x).astype(object),
    "tensors": lambda x: th.as_tensor(np.asarray(x)),
    "lists": lambda x: np.asarray(x).tolist(),
    "float64": lambda x: np.asarray(x).astype(np.float64),
}


class FormEnv(ChaosEnv):
    """Observations in another form; Dict observations get keys that the space lacks."""

    def __init__(self, observation_space: spaces.Space, form: str | None) -> None:
        super().__init__(observation_space, length=5)
        self.form = form

    def _observation(self):
        observation = super()._observation()
        if self.form is None:
            return observation
        if isinstance(observation, dict):
            return {key: FORMS[self.form](part) for key, part in observation.items()} | {"note": "calm", "t": [0, [1]]}
        return FORMS[self.form](observation)


PARTS = st.sampled_from([space for name, space in OBSERVATIONS.items() if name != "unbounded"])
DICTS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), PARTS, min_size=1, max_size=4).map(spaces.Dict)


@settings(max_examples=10, deadline=None)
@given(space=PARTS | DICTS, form=st.sampled_from(sorted(FORMS)), normalise=st.booleans())
def test_the_form_of_observations_makes_no_difference(space, form, normalise):
    """Any space, with any keys: the same weights as from plain arrays, episode ends included."""
    parts = space.items() if isinstance(space, spaces.Dict) else ()
    boxes = [key for key, part in parts if isinstance(part, spaces.Box)]
    policy = "MultiInputPolicy" if parts else "MlpPolicy"
    models = []
    for each in (None, form):
        # A copy, since VecNormalize changes the Dict space of the environment
        env = DummyVecEnv([lambda each=each: FormEnv(copy.deepcopy(space), each)])
        # VecNormalize itself does not compute with objects and tensors at the end of an episode
        if normalise and form == "float64" and (boxes or isinstance(space, spaces.Box)):
            env = VecNormalize(env, norm_obs_keys=boxes or None)
        models.append(small_model(env=env, policy=policy, batch_size=4, policy_kwargs={"net_arch": [4, 4]}).learn(12))
    assert same(*map(lambda model: weights(model.policy), models))
    assert all(value.isfinite().all() for value in weights(models[0].policy).values())
    batches = [model.replay_buffer._get_samples(np.arange(11)) for model in models]
    for left, right in zip(*([batch.observations, batch.next_observations] for batch in batches), strict=True):
        for key in left if isinstance(left, dict) else [...]:
            assert th.equal(left[key], right[key])
    model, observation = models[0], space.sample()
    assert model.predict(observation)[0].shape == (1,)


def test_keys_and_scalars_survive_a_file(tmp_path):
    space = spaces.Dict({key: spaces.Box(-1, 1, ()) for key in KEYS} | {"image.1": OBSERVATIONS["image"]})
    model = small_model(env=ChaosEnv(space), policy="MultiInputPolicy").learn(12)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert same(weights(model.policy), weights(loaded.policy))
    observation = space.sample()
    np.testing.assert_array_equal(model.predict(observation)[0], loaded.predict(observation)[0])


class MisfitEnv(ChaosEnv):
    """An environment whose observation at a step is another one, and which ends its episode after three steps."""

    def __init__(self, observation_space: spaces.Space, at: int, observation: object) -> None:
        super().__init__(observation_space, length=3)
        self.at, self.other = at, observation

    def _observation(self):
        observation = super()._observation()
        return self.other if self.count == self.at else observation


@pytest.mark.parametrize(
    ("observation", "at"),
    [
        (np.zeros(4), 0),
        (np.zeros(4), 2),
        ({"b": np.zeros(5)}, 3),
        ({"a": 1}, 0),
        ("abc", 3),
        (np.zeros((3, 3)), 2),
        ({}, 2),
        (th.zeros(5, requires_grad=True), 2),
    ],
)
def test_an_observation_that_does_not_fit_its_space(observation, at):
    """The package's error names the space; the model can learn on."""
    space, policy = OBSERVATIONS["float32"], "MlpPolicy"
    if isinstance(observation, dict):
        space, policy = spaces.Dict({"b": space}), "MultiInputPolicy"
    env = MisfitEnv(space, at, observation)
    model = small_model(env=env, policy=policy)
    with pytest.raises(UnsupportedSpaceError, match=r"does not fit its observation space (Box|Dict)\("):
        model.learn(20)
    assert model.replay_buffer.size() == max(at - 1, 0)
    env.at = -1
    assert model.learn(5, reset_num_timesteps=False).replay_buffer.size() == max(at - 1, 0) + 5


@pytest.mark.parametrize(
    ("space", "observation"),
    [(spaces.Discrete(5), 5), (spaces.Discrete(5), -1), (spaces.MultiDiscrete([2, 9]), np.array([2, 1]))],
)
@pytest.mark.parametrize("at", [0, 2, 3])
def test_values_without_a_one_hot_code_are_not_stored(space, observation, at):
    model = small_model(env=MisfitEnv(space, at, observation))
    with pytest.raises(UnsupportedSpaceError, match=r"does not fit its observation space (Multi)?Discrete\("):
        model.learn(20)
    assert model.replay_buffer.size() == max(at - 1, 0)


def test_errors_of_an_environment_stay_its_own():
    class Broken(ChaosEnv):
        def step(self, action):
            return np.zeros(3) + np.zeros(4)

    with pytest.raises(ValueError, match="could not be broadcast") as caught:
        small_model(env=Broken(OBSERVATIONS["float32"])).learn(5)
    assert type(caught.value) is ValueError


def test_the_advice_for_unbounded_actions():
    """The message holds an expression; it makes an environment that trains."""
    env = CountingEnv(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    with pytest.raises(UnsupportedSpaceError) as caught:
        small_model(env=env)
    message = str(caught.value)
    expression = message[message.index("gymnasium.wrappers") : message.index(" gives")]
    small_model(env=eval(expression, {"gymnasium": gym, "env": env})).learn(12)
    assert np.abs(env.actions).max() <= 2


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

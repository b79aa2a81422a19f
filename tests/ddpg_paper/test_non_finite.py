"""A NaN, infinite or huge observation, reward or loss stops training before it is stored or learned from."""

import contextlib

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import ToyEnv
from toys import CountingEnv, assert_same_arrays, same, small_model, weights, weights_of

from ddpg_ext import DDPGPaper, DDPGPaperError, NonFiniteError

NAN, INF = float("nan"), float("inf")
# VecNormalize computes with what the environment gave
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
LENGTH = 10  # of an episode: the observation of step 10 is a terminal one


def make_vec_env(n_envs=1, fault=None, faulty=0, dict_obs=False, terminates=False):
    return DummyVecEnv(
        [
            lambda i=i: ToyEnv(
                episode_length=LENGTH if i == faulty else 13,
                fault=fault if i == faulty else None,
                dict_obs=dict_obs,
                terminates=terminates,
            )
            for i in range(n_envs)
        ]
    )


def make_model(env, **kwargs):
    is_dict = isinstance(env.observation_space, spaces.Dict)
    # These tests look into SB3's arrays
    kwargs["replay_buffer_class"] = DictReplayBuffer if is_dict else ReplayBuffer
    return small_model(env, "MultiInputPolicy" if is_dict else "MlpPolicy", batch_size=4, **kwargs)


def stored(model):
    buffer = model.replay_buffer
    arrays = []
    for name in ("observations", "next_observations", "actions", "rewards"):
        value = getattr(buffer, name)
        arrays += value.values() if isinstance(value, dict) else [value]
    return [array[: buffer.size()] for array in arrays]


def assert_clean(model):
    """Nothing that is not finite in buffer, weights, optimisers or normalisation."""
    assert all(np.isfinite(array).all() for array in stored(model))
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())
    for network in (model.actor, model.critic):
        for state in network.optimizer.state.values():
            assert all(value.isfinite().all() for value in state.values())
    if isinstance(model.env, VecNormalize):
        statistics = model.env.obs_rms
        for rms in [*(statistics.values() if isinstance(statistics, dict) else [statistics]), model.env.ret_rms]:
            assert np.isfinite(rms.mean).all()
            assert np.isfinite(rms.var).all()
            assert np.isfinite(rms.count)


def assert_goes_on(model, tmp_path):
    """The model can be saved and loaded, acts, and goes on learning from a new episode."""
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu")
    assert same(weights(model.policy), weights(loaded.policy))
    steps, updates, size = model.num_timesteps, model._n_updates, model.replay_buffer.size()
    n_envs = model.n_envs
    model.learn(30 * n_envs, reset_num_timesteps=False)
    assert model.num_timesteps == steps + 30 * n_envs
    assert model._n_updates > updates
    assert model.replay_buffer.size() == size + 30
    assert_clean(model)


def stop(model, n, parts):
    with pytest.raises(NonFiniteError) as caught:
        model.learn(n)
    assert [part for part in (*parts, "model can still be saved") if part not in str(caught.value)] == []
    assert_clean(model)


FAULTS = [
    # (quantity, step, value), settings, number of environments, is there VecNormalize, what is not finite
    (("observation", 1, INF), {}, 1, False, "the observation is inf"),
    (("observation", 7, -INF), {}, 3, True, "the observation is -inf"),
    (("observation", 7, 1e21), {}, 1, False, "the observation is 1e+21"),
    (("reward", 1, INF), {}, 1, True, "the reward is inf"),
    (("reward", 7, NAN), {}, 3, False, "the reward is nan"),
    (("reward", 7, 1e21), {}, 1, True, "the reward is 1e+21"),
    # The first reset
    (("observation", 0, NAN), {}, 1, False, "observation is nan"),
    (("observation", 0, NAN), {}, 3, True, "observation is nan"),
    # In `infos` only: what the environment returns is the next episode's first observation
    (("observation", LENGTH, NAN), {}, 1, True, "the terminal observation is nan"),
    (("observation", LENGTH, NAN), {"terminates": True}, 3, False, "the terminal observation is nan"),
    (("observation", 0, NAN), {"dict_obs": True}, 2, False, "observation 'position' is nan"),
    (("observation", 5, NAN), {"dict_obs": True}, 2, True, "observation 'position' is nan"),
    (("observation", LENGTH, NAN), {"dict_obs": True}, 2, False, "terminal observation 'position' is nan"),
]


@pytest.mark.parametrize(("fault", "settings", "n_envs", "normalise", "reason"), FAULTS, ids=str)
def test_stops_at_the_step_itself(fault, settings, n_envs, normalise, reason, tmp_path):
    """Naming the step, the environment and the quantity; with the last whole transition as the newest in the buffer."""
    env, step = make_vec_env(n_envs, fault, n_envs - 1, **settings), fault[1]
    if normalise:
        env = VecNormalize(env, norm_obs_keys=["position"] if "dict_obs" in settings else None)
    model = make_model(env)
    stop(model, 100, [f"step {step * n_envs}, environment {n_envs - 1}: ", reason])
    assert model.replay_buffer.size() == max(step - 1, 0)
    assert_goes_on(model, tmp_path)


@pytest.mark.parametrize("quantity", ["observation", "reward"])
def test_infinite_value_that_normalisation_would_clip(quantity):
    """With statistics at rest, ``VecNormalize`` clips infinity to 10, but the buffer gets the original."""
    env = VecNormalize(make_vec_env(1, (quantity, 5, INF)), training=False)
    stop(make_model(env), 100, ["step 5", "environment 0", f"{quantity} is inf"])


@pytest.mark.parametrize(
    ("dtype", "value", "step"),
    [(np.float32, -1e21, 0), (np.float64, -1e21, 5), (np.float32, 1e39, LENGTH), (np.float64, 1e39, 5)],
)
def test_finite_values_too_large_for_single_precision(dtype, value, step):
    """The value itself is named; a type that does not hold it has made it infinite on the way."""
    env = ToyEnv(episode_length=LENGTH, fault=("observation", step, value), dtype=dtype)
    is_lost = value == 1e39 and dtype is np.float32
    stop(make_model(DummyVecEnv([lambda: env])), 100, [f"observation is {INF if is_lost else value}"])


def test_whole_numbers_too_large_for_single_precision():
    env = ToyEnv(episode_length=LENGTH, fault=("observation", 5, 2**62), dtype=np.int64)
    model = make_model(DummyVecEnv([lambda: env]))
    stop(model, 100, [f"observation is {2**62}", "limit 1e+15"])
    assert all(buffer.isfinite().all() for buffer in model.policy.buffers())


def test_the_terminal_observation_keeps_its_own_type():
    """It is in ``infos`` as the environment gave it, in float64."""
    env = ToyEnv(episode_length=LENGTH, fault=("observation", LENGTH, 1e39), dtype=np.float64)
    env.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    reason = "too large for single precision (limit 1e+15)"
    stop(make_model(DummyVecEnv([lambda: env])), 100, [f"terminal observation is 1e+39, {reason}"])


class Scaled(ToyEnv):
    def __init__(self, size, reward_size=1.0):
        super().__init__(episode_length=LENGTH)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.observation_space.shape, np.float32)
        self.size, self.reward_size = size, reward_size

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return np.float32(self.size) * observation, self.reward_size * reward, *rest


@pytest.mark.parametrize("executor", ["fast", "eager"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("sizes", [(1e5, 1.0), (1e11, 1.0), (1e14, 1.0), (1e5, 1e14)])
def test_gradients_whose_squares_overflow(sizes, batch_norm, executor):
    """Adam's averages of squares stay finite: training goes on, or stops before them and says what is too large."""
    kwargs = {"net_arch": [16, 16], "batch_norm": batch_norm, "final_init": None}
    model = make_model(DummyVecEnv([lambda: Scaled(*sizes)]), policy_kwargs=kwargs, executor=executor)
    before = weights_of(model)
    if batch_norm or sizes[0] < 1e13:  # with fewer digits it depends on the weights
        with contextlib.suppress(NonFiniteError):
            model.learn(60)
    else:
        with pytest.raises(NonFiniteError, match=r"gradient step 1: .*gradient is .*single precision.* observations"):
            model.learn(60)
        kept = [name for name in before if "running" not in name]
        assert_same_arrays(*({name: each[name] for name in kept} for each in (before, weights_of(model))))
    assert not batch_norm or model.num_timesteps == 60
    assert_clean(model)


def test_is_a_value_error_of_the_packages_own():
    assert issubclass(NonFiniteError, DDPGPaperError)
    assert issubclass(NonFiniteError, ValueError)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_no_invalid_action_reaches_the_environment(n_envs):
    class Failing(NormalActionNoise):
        n_calls = 0

        def __call__(self):
            self.n_calls += 1
            return np.full(1, np.nan if self.n_calls >= 8 else 0.1, np.float32)

    envs = [CountingEnv(length=LENGTH) for _ in range(n_envs)]
    vec_env = DummyVecEnv([lambda env=env: env for env in envs])
    model = make_model(vec_env, action_noise=Failing(np.zeros(1), np.ones(1)))
    stop(model, 100, [f"step {8 * n_envs}, environment 0: the action is nan"])
    assert {len(env.actions) for env in envs} == {7}

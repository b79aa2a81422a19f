"""The adapter over a store that is a plain list, and the default buffer of DDPGPaper."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_envs import ToyGoalEnv

from ddpg_ext import DDPGPaper, SnapshotCallback
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer, ReplayBufferAdapter, Transitions, end_episodes
from ddpg_ext.common.errors import InvalidArgumentError, NonFiniteError

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def small(**kwargs):
    """Fresh arguments every time: SB3's SAC writes to the `policy_kwargs` it is given."""
    return {"batch_size": 8, "buffer_size": 200, "policy_kwargs": {"net_arch": [16, 16]}, "seed": 0, **kwargs}


class ListReplayBuffer(ReplayBufferAdapter):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.items = {}

    def _write(self, indices, transitions, episode_ends):
        assert indices.tolist() == list(range(indices[0], indices[0] + self.n_envs))
        for index, *item in zip(indices.tolist(), *transitions, episode_ends.tolist(), strict=True):
            self.items[index] = [np.array(part) for part in item]

    def _read(self, indices):
        return Transitions(*(np.stack(part) for part in zip(*(self.items[i][:5] for i in indices), strict=True)))


def steps(n, n_envs, seed=0):
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(n_envs, 3))
    for _ in range(n):
        next_obs, done = rng.normal(size=(n_envs, 3)), rng.random(n_envs) < 0.3
        infos = [{"TimeLimit.truncated": bool(rng.random() < 0.5)} for _ in range(n_envs)]
        action = rng.uniform(-1, 1, (n_envs, 1)).astype(np.float32)
        yield obs, next_obs, action, rng.normal(size=n_envs), done, infos
        obs = np.where(done[:, None], rng.normal(size=(n_envs, 3)), next_obs)


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_an_adapted_list_gives_sb3s_batches(n_envs, handle_timeout_termination):
    ours, theirs = (
        cls(30, SPACE, ACTIONS, "cpu", n_envs, handle_timeout_termination=handle_timeout_termination)
        for cls in (ListReplayBuffer, ReplayBuffer)
    )
    for step in steps(25, n_envs):
        ours.add(*step)
        theirs.add(*step)
    assert ours.size() == theirs.size()
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    terminal = theirs.dones * (1 - theirs.timeouts)
    arrays = (theirs.observations, theirs.actions, theirs.next_observations, terminal, theirs.rewards)
    rows = zip(*(x[: ours.size()].reshape(ours.size() * n_envs, -1) for x in arrays), strict=True)
    drawn = {tuple(x.numpy().tobytes() for x in row) for row in zip(*ours.sample(3000)[:5], strict=True)}
    assert drawn == {tuple(x.astype(np.float32).tobytes() for x in row) for row in rows}
    assert ours._get_samples(np.array([0, 1])).rewards.shape == (2, 1)


def test_the_store_is_not_asked_for_what_fails_the_checks():
    buffer = ListReplayBuffer(30, SPACE, ACTIONS, "cpu")
    good = next(steps(1, 1))
    with pytest.raises(NonFiniteError):
        buffer.add(good[0] * np.nan, *good[1:])
    with pytest.raises(InvalidArgumentError):
        buffer.add(good[0][:, :2], *good[1:])
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        buffer.sample(0)
    assert buffer.items == {}
    assert buffer.size() == 0


@pytest.mark.parametrize(("cls", "buffer_class"), [(TD3, ListReplayBuffer), (SAC, PackedReplayBuffer)])
def test_sb3s_algorithms_take_it(cls, buffer_class):
    model = cls("MlpPolicy", "Pendulum-v1", learning_starts=10, replay_buffer_class=buffer_class, **small())
    model.learn(30)
    assert model.replay_buffer.size() == 30


def test_it_is_the_default_and_seeded_from_the_model():
    draws = []
    for seed in (0, 0, 1):
        model = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(seed=seed))
        assert type(model.replay_buffer) is PackedReplayBuffer
        assert model.replay_buffer_class is None
        draws.append(model.replay_buffer._rng.random())
    assert draws[0] == draws[1] != draws[2]
    model.set_random_seed(0)
    assert model.replay_buffer._rng.random() == draws[0]
    kwargs = {"replay_buffer_class": PackedReplayBuffer, "replay_buffer_kwargs": {"seed": 5}}
    own = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), **kwargs)
    assert own.replay_buffer._rng.random() == np.random.default_rng(5).random()


class OwnPackedBuffer(PackedReplayBuffer):
    """With arguments of its own: it takes neither n_steps nor gamma."""

    def __init__(self, buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage):
        super().__init__(buffer_size, observation_space, action_space, device, n_envs)


@pytest.mark.parametrize(
    ("given_in", "buffer_class"),
    [
        *(("the arguments", cls) for cls in (None, PackedReplayBuffer, PrioritizedReplayBuffer, NStepReplayBuffer)),
        *(("replay_buffer_kwargs", cls) for cls in (None, NStepReplayBuffer)),
        *(("both", cls) for cls in (None, PrioritizedReplayBuffer)),
    ],
)
def test_a_chosen_class_gets_the_models_n_steps_and_gamma(buffer_class, given_in, tmp_path, recwarn):
    in_kwargs = {"the arguments": {}, "replay_buffer_kwargs": {"n_steps": 3}, "both": {"n_steps": 3, "gamma": 0.9}}
    kwargs = {"gamma": 0.9, "replay_buffer_kwargs": in_kwargs[given_in]}
    if given_in != "replay_buffer_kwargs":
        kwargs["n_steps"] = 3

    def settings(model):
        return type(model.replay_buffer), model.replay_buffer.n_steps, model.replay_buffer.gamma

    stored_in = buffer_class or PackedReplayBuffer
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(replay_buffer_class=buffer_class, **kwargs))
    assert settings(model) == (stored_in, 3, 0.9)
    assert model.replay_buffer_kwargs == in_kwargs[given_in]  # what was asked for, not what came of it
    if given_in != "both":
        model.learn(30)
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        loaded = DDPGPaper.load(tmp_path / "model", env=model.get_env())
        assert settings(loaded) == (stored_in, 3, 0.9)
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        assert settings(loaded) == (stored_in, 3, 0.9)
        assert loaded.replay_buffer.size() == 30
        assert settings(DDPGPaper.load(tmp_path / "model", gamma=0.8))[1:] == (3, 0.8)
    if buffer_class is None and given_in == "the arguments":
        assert settings(DDPGPaper.load(tmp_path / "model", n_steps=1, gamma=0.8))[1:] == (1, 0.8)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


def test_a_chosen_class_gives_the_default_classs_n_step_run(tmp_path):

    def run(**kwargs):
        return DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), n_steps=3, gamma=0.9, **kwargs)

    default = run().learn(210)
    chosen = run(replay_buffer_class=PackedReplayBuffer)
    chosen.learn(205, callback=SnapshotCallback(tmp_path, every=150))
    resumed = DDPGPaper.resume(tmp_path, gym.make("Pendulum-v1"))
    assert (resumed.num_timesteps, resumed.replay_buffer.n_steps, resumed.replay_buffer.gamma) == (200, 3, 0.9)
    resumed.learn(10, reset_num_timesteps=False)
    for one, other in zip(default.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True):
        assert th.equal(one, other)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"replay_buffer_class": PrioritizedReplayBuffer, "replay_buffer_kwargs": {"gamma": 0.9}}, "`gamma=0.99`"),
        ({"n_steps": 3, "replay_buffer_class": ListReplayBuffer}, "`n_steps` must be 1 with .* ListReplayBuffer"),
        ({"n_steps": 3, "replay_buffer_class": OwnPackedBuffer}, "`n_steps` must be 1 with .* OwnPackedBuffer"),
    ],
)
def test_contradictions_are_refused(kwargs, match):
    with pytest.raises(InvalidArgumentError, match=match):
        DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), **kwargs)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_no_episode_of_her_reaches_across_two_calls_of_learn(n_envs):
    """`learn` resets the environment: what was stored of the episode that was under way is an episode of its own."""
    env = DummyVecEnv([ToyGoalEnv] * n_envs)
    kwargs = small(replay_buffer_class=HerReplayBuffer, buffer_size=400, learning_starts=12 * n_envs)
    model = DDPGPaper("MultiInputPolicy", env, **kwargs)
    model.learn(12 * n_envs)
    model.learn(17 * n_envs)
    buffer = model.replay_buffer
    lengths, starts = buffer.ep_length[:29], buffer.ep_start[:29]
    goals = buffer.observations["desired_goal"][:29, :, 0]
    for env_index in range(n_envs):
        # 10 and 2 steps, then 10 and 7, of which the last are under way
        assert lengths[:, env_index].tolist() == [10] * 10 + [2] * 2 + [10] * 10 + [0] * 7
        for start in np.unique(starts[:, env_index]):
            assert len(np.unique(goals[starts[:, env_index] == start, env_index])) == 1
    # Time limits and cut episodes alike bootstrap
    assert not (buffer.dones * (1 - buffer.timeouts)).any()


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, DictReplayBuffer, NStepReplayBuffer])
def test_episodes_of_sb3s_buffers_end_truncated(buffer_class):
    space = spaces.Dict({"a": SPACE}) if buffer_class is DictReplayBuffer else SPACE
    buffer = buffer_class(10, space, ACTIONS, "cpu", 3)
    end_episodes(buffer, np.arange(3))
    assert not buffer.timeouts.any()  # empty
    obs = np.zeros((3, 3))
    obs = {"a": obs} if buffer_class is DictReplayBuffer else obs
    buffer.add(obs, obs, np.zeros((3, 1)), np.zeros(3), np.array([False, True, False]), [{}] * 3)
    end_episodes(buffer, np.array([0, 1]))
    assert buffer.timeouts[0].tolist() == [1, 0, 0]  # the second was terminal
    assert buffer.dones[0].tolist() == [0, 1, 0]


def test_without_timeouts_no_mark_of_them_stays():
    """SB3's ``add`` would never remove it, so a terminal transition in its place would bootstrap."""
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = ReplayBuffer(2, box, box, handle_timeout_termination=False)
    add = [np.zeros((1, 1), np.float32)] * 3 + [np.zeros(1)]
    buffer.add(*add, np.array([False]), [{}])
    end_episodes(buffer, np.arange(1))
    for _ in range(2):
        buffer.add(*add, np.array([True]), [{}])
    assert (buffer.sample(20).dones == 1).all()


def test_without_timeouts_no_n_step_return_crosses_the_end():
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = NStepReplayBuffer(10, box, box, handle_timeout_termination=False, n_steps=2, gamma=1.0)
    for value in (1, 10):
        buffer.add(*[np.full((1, 1), value / 100, np.float32)] * 3, np.array([value]), np.array([False]), [{}])
    end_episodes(buffer, np.arange(1))
    buffer.add(*[np.ones((1, 1), np.float32)] * 3, np.array([100]), np.array([False]), [{}])
    assert buffer._get_samples(np.array([0, 1])).rewards.flatten().tolist() == [11, 10]


@pytest.mark.parametrize("envs", [[0], 0, np.array([True, False, False]), [True, False, False], np.array([0])])
@pytest.mark.parametrize("cls", [PackedReplayBuffer, ReplayBuffer])
def test_episodes_end_by_number_or_flag(cls, envs):
    box = spaces.Box(-1, 1, (1,))
    buffer = cls(30, box, box, "cpu", n_envs=3)
    for step in range(3):
        buffer.add(*(np.full((3, 1), value, np.float32) for value in (step, step + 1, 0)), *np.zeros((2, 3)), [{}] * 3)
    end_episodes(buffer, envs)
    buffer.add(*(np.full((3, 1), value, np.float32) for value in (7, 8, 0)), *np.zeros((2, 3)), [{}] * 3)
    batch = buffer.sample(300)
    jumps = batch.next_observations - batch.observations
    assert set(jumps.ravel().tolist()) == {1.0}
    with pytest.raises(InvalidArgumentError, match="`envs` must be numbers of the 3 environments"):
        end_episodes(buffer, [3])
    with pytest.raises(InvalidArgumentError, match="numbers of the 3 environments"):
        end_episodes(buffer, [-1])
    end_episodes(buffer, [])

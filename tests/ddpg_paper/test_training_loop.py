"""The training loop: when updates happen, what they learn from, and what is logged."""

import contextlib
import io

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from toy_envs import ToyEnv, toy_vec_env
from toys import CountingEnv, PointEnv, counting_envs, first, recorded, small_model

import ddpg_ext.ddpg_paper.ddpg_paper as algorithm
from ddpg_ext import DDPGPaper, LinearDecay, OrnsteinUhlenbeckNoise, ReplayBufferError, ScheduledActionNoise
from ddpg_ext.ddpg_paper.executors import EXECUTORS


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    """(steps so far, gradient steps) of every call of ``train``."""
    calls: list[tuple[int, int]] = []
    train = algorithm.DDPGPaper.train

    def spy(self, gradient_steps: int, batch_size: int) -> None:
        calls.append((self.num_timesteps, gradient_steps))
        train(self, gradient_steps, batch_size)

    monkeypatch.setattr(algorithm.DDPGPaper, "train", spy)
    return calls


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        # The first minibatch of 8 is complete with step 8
        ({}, [(n, 1) for n in range(8, 25)]),
        ({"learning_starts": 20}, [(n, 1) for n in range(21, 25)]),
        ({"learning_starts": 0, "train_freq": 10}, [(10, 1), (20, 1), (30, 1)]),
        ({"train_freq": 6, "gradient_steps": 2}, [(12, 2), (18, 2), (24, 2)]),
        ({"train_freq": (6, "step"), "gradient_steps": -1}, [(12, 6), (18, 6), (24, 6)]),
        ({"gradient_steps": 0}, []),
        # Episodes of 5 steps, one at a time and in pairs
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, [(10, 5), (15, 5), (20, 5), (25, 5)]),
        ({"train_freq": (2, "episode"), "gradient_steps": 3}, [(10, 3), (20, 3), (30, 3)]),
    ],
)
def test_when_and_how_often(calls, kwargs, expected):
    model = small_model(CountingEnv(length=5), **kwargs).learn(24)
    assert calls == expected
    assert model._n_updates == sum(steps for _, steps in expected)


def test_warm_up():
    model = small_model(PointEnv(), uniform_warmup=True, learning_starts=200, action_noise=None).learn(260)
    actions = np.abs(first(model.replay_buffer, 260).actions.numpy())
    # The fresh actor's outputs are near zero: its last layer starts within 3e-3
    assert actions[200:].max() < 0.2
    # Uniform on [-1, 1]: absolute values have mean 1/2, and reach into every tenth
    assert actions[:200].mean() == pytest.approx(0.5, abs=0.05)
    assert np.histogram(actions[:200], bins=10, range=(0, 1))[0].min() > 15


class NoiseSpy(OrnsteinUhlenbeckNoise):
    def __init__(self, *args, **kwargs):
        self.resets, self.given = [], []
        super().__init__(*args, **kwargs)

    def __call__(self):
        self.given.append(super().__call__())
        return self.given[-1]

    def reset(self):
        self.resets.append(len(self.given))
        super().reset()


def test_policy_plus_noise_from_the_first_step():
    """a_t = mu(s_t) + N_t, clipped to the bounds, at every step; no uniform random actions."""
    env, noise = ToyEnv(low=-2.0, high=6.0), NoiseSpy(np.zeros(2), sigma=0.8, seed=1)
    model = small_model(env, action_noise=noise, learning_starts=10**6).learn(60)
    stored = first(model.replay_buffer, 60)
    mu = model.policy.scale_action(model.predict(stored.observations.numpy())[0])
    assert len(noise.given) == 60  # one draw per step, and the shape check draws from a copy
    expected = np.clip(mu + np.stack(noise.given), -1, 1)
    np.testing.assert_allclose(stored.actions, expected, atol=1e-6)
    np.testing.assert_allclose(env.actions, 4 * expected + 2, atol=1e-5)
    assert (np.abs(expected) == 1).any()
    assert (np.abs(expected) < 1).any()


def test_each_environments_noise_restarts_with_its_own_episodes():
    model = small_model(toy_vec_env(3), learning_starts=10**6, action_noise=NoiseSpy(np.zeros(2))).learn(120)
    # Episodes of 17, 21 and 25 steps
    for noise, resets in zip(model.action_noise.noises, ([17, 34], [21], [25]), strict=True):
        assert [n for n in sorted(set(noise.resets)) if n > 0] == resets


def test_optimized_memory(recwarn):
    """One array for both observations: the same transitions come out, and a second learn() cuts the last episode."""
    n_envs, kwargs = 2, {"optimize_memory_usage": True, "buffer_size": 24}
    buffer_kwargs = {"handle_timeout_termination": False}
    model = small_model(counting_envs(n_envs, length=5), replay_buffer_kwargs=buffer_kwargs, **kwargs).learn(36)
    assert not hasattr(model.replay_buffer, "next_observations")
    assert model.replay_buffer.full
    for _ in range(20):
        batch = model.replay_buffer.sample(8)
        going_on = batch.dones[:, 0] == 0
        assert th.equal(batch.next_observations[going_on, 2], batch.observations[going_on, 2] + 1)
    model.learn(3 * n_envs, reset_num_timesteps=False)
    assert not [warning for warning in recwarn if "truncated" in str(warning.message)]
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        model.learn(4 * n_envs)


def test_a_run_that_ends_before_learning_starts_says_so(recwarn):
    model = small_model(PointEnv(), learning_starts=20)
    with pytest.warns(UserWarning, match=r"ended at step 20.*after step 20 \(`learning_starts`\)"):
        model.learn(20)
    recwarn.clear()
    model.learn(10, reset_num_timesteps=False)
    model.learn(10)
    model.learn(0)
    assert not [warning for warning in recwarn if "learning_starts" in str(warning.message)]


def test_training_from_a_stored_buffer_alone(tmp_path):
    """As with data that others have collected: `train` needs no `learn` before it, and no logger."""
    collected = small_model(PointEnv()).learn(30)
    collected.save_replay_buffer(tmp_path / "buffer")
    model = small_model(PointEnv())
    model.load_replay_buffer(tmp_path / "buffer")
    before = [param.clone() for param in model.critic.parameters()]
    model.train(gradient_steps=2)
    model.train(batch_size=4, gradient_steps=1)
    assert model._n_updates == 3
    assert any(not th.equal(a, b) for a, b in zip(before, model.critic.parameters(), strict=True))
    model.learn(10)
    assert "train/critic_loss" in model.logger.name_to_value


@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer])
def test_training_without_transitions(tmp_path, buffer_class):
    model = small_model(PointEnv(), replay_buffer_class=buffer_class)
    with pytest.raises(ReplayBufferError, match="call `learn`, or `load_replay_buffer`, before `train`"):
        model.train(gradient_steps=1)
    del model.replay_buffer
    with pytest.raises(ReplayBufferError, match="call `learn`, or `load_replay_buffer`, before `train`"):
        model.train(gradient_steps=1)
    model.learn(20)


def test_both_learning_rates_follow_their_schedules_and_are_logged():
    """With a quarter of training left, a schedule of the progress that remains gives a quarter of its rate."""
    model = small_model(CountingEnv(length=5), learning_rate=lambda p: 1e-3 * p, qf_learning_rate=lambda p: 1e-2 * p**2)
    records = recorded(model)
    model.learn(40, log_interval=2)
    last = {step: values for step, values in records.dumps}
    for step in (10, 20, 30, 40):
        # The log of a step comes before its update: the values are those of the step before
        remaining = 1 - (step - 1) / 40
        assert last[step]["train/learning_rate"] == pytest.approx(1e-3 * remaining)
        assert last[step]["train/qf_learning_rate"] == pytest.approx(1e-2 * remaining**2)
    # and after the last step nothing remains
    assert [group["lr"] for group in model.actor.optimizer.param_groups] == [0]
    assert [group["lr"] for group in model.critic.optimizer.param_groups] == [0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_logged_metrics_are_means_since_the_last_log(executor, monkeypatch):
    """Every log's value is the mean over the gradient steps since the one before, and each step counts once."""
    metrics, step = [], EXECUTORS[executor].step

    def spy(*args, **kwargs):
        result = step(*args, **kwargs)
        metrics.append(result.metrics)
        return result

    monkeypatch.setattr(EXECUTORS[executor], "step", spy)
    model = small_model(CountingEnv(length=5), gradient_steps=2, executor=executor)
    records = recorded(model)
    model.learn(41, log_interval=2)
    # Logs at steps 10, 20, 30, 40, each before that step's own update; updates from step 8 on, two each
    ends = [2 * (step - 1 - 7) for step in (10, 20, 30, 40)]
    assert len(metrics) == 2 * (41 - 7)
    for (step, values), start, end in zip(records.dumps, [0, *ends[:-1]], ends, strict=True):
        window = metrics[start:end]
        for name in window[0]._fields:
            expected = np.mean([getattr(metric, name) for metric in window])
            assert values[f"train/{name}"] == pytest.approx(expected), (step, name)
        assert values["train/n_updates"] == end
        assert values["time/total_timesteps"] == step


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_noise_scale_is_logged(n_envs):
    """The factor on the next draw, after as many draws as each environment had steps; 1 without a schedule."""
    noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), LinearDecay(40))
    model = small_model(counting_envs(n_envs, length=10), action_noise=noise)
    records = recorded(model)
    model.learn(60 * n_envs, log_interval=n_envs)
    scales = {step: values["train/noise_scale"] for step, values in records.dumps}
    assert scales == pytest.approx({step * n_envs: max(0.0, 1 - (step - 1) / 40) for step in (10, 20, 30, 40, 50, 60)})

    for action_noise, logged in (("ornstein-uhlenbeck", [1.0]), (None, [])):
        model = small_model(CountingEnv(length=10), action_noise=action_noise)
        records = recorded(model)
        model.learn(20)
        model.dump_logs()
        assert [value for name, value in records.dumps[-1][1].items() if name == "train/noise_scale"] == logged


def _stop_at(step):
    def callback(local_variables, _):
        return local_variables["self"].num_timesteps < step

    return callback


def _fail_at(step):
    def callback(local_variables, _):
        if local_variables["self"].num_timesteps == step:
            raise KeyError("callback")

    return callback


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("callback", [lambda: StopTrainingOnMaxEpisodes(4), lambda: _stop_at(28), lambda: _fail_at(28)])
def test_a_stop_between_a_step_and_its_transition(n_envs, callback, optimized):
    """Training that continues afterwards starts a new episode, so no transition joins two episodes or skips a step."""
    kwargs = {}
    if optimized:  # the next observation of a last transition is another episode's, so it must be terminal
        kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = small_model(counting_envs(n_envs, length=10, terminates=True), **kwargs)
    with contextlib.suppress(KeyError):
        model.learn(100, callback=callback())
    model.learn(60, reset_num_timesteps=False)
    batch = model.replay_buffer.sample(2000)
    if optimized:
        kept = batch.dones[:, 0] == 0
        batch = batch._replace(observations=batch.observations[kept], next_observations=batch.next_observations[kept])
    assert th.equal(batch.observations[:, 1], batch.next_observations[:, 1])
    assert th.equal(batch.observations[:, 2] + 1, batch.next_observations[:, 2])
    assert batch.dones.any()


@pytest.mark.parametrize(("n_envs", "train_freq"), [(3, 1), (1, 4), (1, (1, "episode"))])
def test_a_schedule_ends_at_zero_though_the_last_rollout_passes_the_end(n_envs, train_freq):
    model = small_model(
        counting_envs(n_envs, length=7),
        learning_rate=rate_to_zero,
        qf_learning_rate=rate_to_zero,
        train_freq=train_freq,
    ).learn(10)
    assert model.num_timesteps > 10
    assert [group["lr"] for group in model.actor.optimizer.param_groups + model.critic.optimizer.param_groups] == [0, 0]
    stream = io.BytesIO()
    model.save(stream)
    DDPGPaper.load(stream, allow=[rate_to_zero])


def rate_to_zero(progress_remaining):
    return 1e-3 * progress_remaining


@pytest.mark.parametrize("seed", [0, 1])
def test_a_new_replay_buffer_has_the_models_seed(seed):
    """The user may delete the buffer to save memory; ``learn`` makes another."""
    batches = []
    for _ in range(2):
        model = small_model(CountingEnv(length=7), seed=seed).learn(10)
        del model.replay_buffer
        model.learn(20)
        batches.append(model.replay_buffer.sample(8).observations)
    assert th.equal(*batches)

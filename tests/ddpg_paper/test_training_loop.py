"""The training loop: when updates happen, what they learn from, and what is logged about them."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.logger import CSVOutputFormat, Logger, configure
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan
from toys import CountingEnv, PointEnv, counting_envs, recorded, same, small_model, weights

import ddpg_ext.ddpg_paper.ddpg_paper as algorithm
from ddpg_ext import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.ddpg_paper.update import td_targets


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


@pytest.fixture
def metrics(monkeypatch) -> list:
    """The metrics of every gradient step, as they come from it."""
    metrics: list = []
    step = algorithm.gradient_step

    def spy(*args, **kwargs):
        result = step(*args, **kwargs)
        metrics.append(result.metrics)
        return result

    monkeypatch.setattr(algorithm, "gradient_step", spy)
    return metrics


# ----------------------------------------------------------------- when to update


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


def test_no_gradient_steps_no_change():
    """Collecting alone moves neither weights nor the running averages of batch norm."""
    model = small_model(gradient_steps=0)
    before = weights(model.policy)
    model.learn(50)
    assert same(before, weights(model.policy))


def test_gradient_steps_at_once_are_those_one_by_one():
    """train(3) is three times train(1), given the same minibatches."""
    at_once, one_by_one = small_model(gradient_steps=0).learn(30), small_model(gradient_steps=0).learn(30)
    np.random.seed(0)
    at_once.train(3, 8)
    np.random.seed(0)
    for _ in range(3):
        one_by_one.train(1, 8)
    assert same(weights(at_once.policy), weights(one_by_one.policy))


@pytest.mark.parametrize("uniform_warmup", [False, True])
def test_warm_up(uniform_warmup):
    """Uniform actions until ``learning_starts`` if asked for; else policy and noise, here none, from the first step."""
    model = small_model(PointEnv(), uniform_warmup=uniform_warmup, learning_starts=200, action_noise=None)
    model.learn(260)
    actions = np.abs(model.replay_buffer.actions[:260, 0])
    # The fresh actor's outputs are near zero: its last layer starts within 3e-3
    assert actions[200:].max() < 0.2
    if uniform_warmup:
        # Uniform on [-1, 1]: absolute values have mean 1/2, and reach into every tenth
        assert actions[:200].mean() == pytest.approx(0.5, abs=0.05)
        assert np.histogram(actions[:200], bins=10, range=(0, 1))[0].min() > 15
    else:
        assert actions[:200].max() < 0.2


@pytest.mark.parametrize(
    "noise",
    [
        NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)),
        OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2)),
        OrnsteinUhlenbeckNoise(np.zeros(2), dt=0.01),
        ScheduledActionNoise(NormalActionNoise(np.zeros(2), np.ones(2)), LinearDecay(30)),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_noise_is_reset_with_every_episode(noise, monkeypatch):
    """At the start of learning and after each of two episodes."""
    resets: list[int] = []
    kind, reset = type(noise), type(noise).reset
    model = small_model(PointEnv(), action_noise=noise)

    def spy(self):
        resets.append(model.num_timesteps)
        reset(self)

    monkeypatch.setattr(kind, "reset", spy)
    model.learn(60)
    assert resets == [0, 25, 50]
    assert model._n_updates == 53


# ------------------------------------------------------------ what to learn from


@pytest.mark.parametrize("n_envs", [1, 2])
def test_n_step_returns(n_envs):
    """
    Rewards 1 and episodes of 6: three steps give 1 + g + g^2 and bootstrap with g^3; fewer are left before the end,
    which is a real one here, so nothing is bootstrapped there.
    """
    gamma = 0.5
    env = DummyVecEnv([lambda: CountingEnv(length=6, terminates=True)] * n_envs)
    model = small_model(env, n_steps=3, gamma=gamma, train_freq=4).learn(24 * n_envs)
    buffer = model.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer)
    # Without the last rows, whose return is still open
    batch = buffer._get_samples(np.arange(18))
    for row in range(18):
        step = row % 6
        left = min(3, 6 - step)
        assert batch.rewards[row].item() == sum(gamma**k for k in range(left))
        assert batch.dones[row].item() == (step + 3 >= 6)
        assert batch.next_observations[row, 2].item() == step + left
        if step + 3 < 6:
            assert batch.discounts[row].item() == gamma**3
    assert model._n_updates > 0


def test_n_step_targets_use_the_samples_own_discounts():
    """y = sum of rewards + gamma^n Q'(s_n, mu'(s_n))."""
    model = small_model(n_steps=3, gamma=0.9).learn(40)
    model.policy.set_training_mode(False)
    batch = model.replay_buffer._get_samples(np.array([2, 9, 15]))
    with th.no_grad():
        q = model.critic_target(batch.next_observations, model.actor_target(batch.next_observations))
    rewards = model.replay_buffer.rewards[:, 0]
    expected = [sum(0.9**k * rewards[i + k] for k in range(3)) + 0.9**3 * q[j].item() for j, i in enumerate((2, 9, 15))]
    np.testing.assert_allclose(td_targets(model.policy, batch, model.gamma)[:, 0], expected, rtol=1e-5)


def test_n_steps_of_one_are_plain_returns():
    """NStepReplayBuffer with one step, given as a class of one's own, learns what the plain buffer learns."""
    plain = small_model().learn(40)
    n_step = small_model(
        replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs={"n_steps": 1, "gamma": 0.99}
    ).learn(40)
    for name, value in weights(plain.policy).items():
        th.testing.assert_close(value, weights(n_step.policy)[name], rtol=1e-5, atol=1e-7)


def test_replay_buffer_class_and_kwargs():
    """A buffer of one's own is built with its arguments, fed and sampled; the caller's dict stays as it was."""

    class Doubling(ReplayBuffer):
        def __init__(self, *args, factor: float, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.factor, self.sampled = factor, 0

        def sample(self, batch_size, env=None):
            self.sampled += batch_size
            batch = super().sample(batch_size, env)
            return batch._replace(rewards=batch.rewards * self.factor)

    kwargs = {"factor": 2.0, "handle_timeout_termination": False}
    model = small_model(CountingEnv(reward=3.0), replay_buffer_class=Doubling, replay_buffer_kwargs=kwargs)
    model.learn(30)
    assert kwargs == {"factor": 2.0, "handle_timeout_termination": False}
    assert isinstance(model.replay_buffer, Doubling)
    assert model.replay_buffer.sampled == 8 * model._n_updates == 8 * 23
    assert set(model.replay_buffer.sample(4).rewards.flatten().tolist()) == {6.0}
    assert not model.replay_buffer.handle_timeout_termination


def test_n_steps_leave_the_callers_kwargs_alone():
    """SB3 adds two entries to the dict that it was given."""
    kwargs = {"handle_timeout_termination": True}
    model = small_model(n_steps=3, replay_buffer_kwargs=kwargs)
    assert model.replay_buffer.n_steps == 3
    assert kwargs == {"handle_timeout_termination": True}


@pytest.mark.parametrize("n_envs", [1, 2])
def test_optimized_memory(n_envs, recwarn):
    """One array for both observations: the same transitions come out, and a second learn() cuts the last episode."""
    model = small_model(
        counting_envs(n_envs, length=5),
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        buffer_size=12 * n_envs,
    )
    assert not hasattr(model.replay_buffer, "next_observations")
    model.learn(18 * n_envs)
    assert model.replay_buffer.full
    for _ in range(20):
        batch = model.replay_buffer.sample(8)
        going_on = batch.dones[:, 0] == 0
        step, next_step = batch.observations[going_on, 2], batch.next_observations[going_on, 2]
        assert th.equal(next_step, step + 1)
    model.learn(3 * n_envs, reset_num_timesteps=False)
    assert not [warning for warning in recwarn if "truncated" in str(warning.message)]
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        model.learn(4 * n_envs)


def test_optimized_memory_and_timeouts_exclude_each_other():
    """SB3 cannot tell truncations apart without the next observations, and says so."""
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        small_model(optimize_memory_usage=True)


def test_vec_check_nan_goes_along():
    """SB3's wrapper that looks for NaN in both directions has nothing to say about a sound run."""
    model = small_model(VecCheckNan(DummyVecEnv([PointEnv]), raise_exception=True)).learn(30)
    assert model._n_updates == 23


# ------------------------------------------------------------------ what is logged


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
    assert [group["lr"] for group in model.critic.optimizer.param_groups] == [0, 0]


def test_a_learning_rate_of_zero_stops_learning():
    """A schedule may end at 0: that network stays, the other learns."""
    model = small_model(learning_rate=lambda _: 0.0, qf_learning_rate=1e-3)
    actor, critic = dict(model.actor.named_parameters()), dict(model.critic.named_parameters())
    before = {name: param.detach().clone() for name, param in (*actor.items(), *critic.items())}
    model.learn(20)
    assert all(th.equal(before[name], param) for name, param in actor.items())
    assert not any(th.equal(before[name], param) for name, param in critic.items() if name.endswith("weight_features"))


def test_logged_metrics_are_means_since_the_last_log(metrics):
    """Every log's value is the mean over the gradient steps since the one before, and each step counts once."""
    model = small_model(CountingEnv(length=5), gradient_steps=2)
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


def test_metrics_are_what_they_say():
    """Losses, Q, targets and saturation of one gradient step, computed again from a copy of the networks."""
    model = small_model(gradient_steps=0, policy_kwargs={"batch_norm": False, "final_init": None}).learn(60)
    records = recorded(model)
    with th.no_grad():  # some actions, but not all, beyond 0.99 on either side
        layer = list(model.actor.mu.children())[-2]
        layer.weight.mul_(4)
        layer.bias.copy_(th.tensor([2.6, -2.6]))
        list(model.actor_target.mu.children())[-2].weight.mul_(-5)
    np.random.seed(1)
    batch = model.replay_buffer.sample(8)
    with th.no_grad():
        q = model.critic(batch.observations, batch.actions).numpy()
        y = td_targets(model.policy, batch, model.gamma).numpy()
        actions = model.actor(batch.observations)
    np.random.seed(1)
    model.train(1, 8)
    with th.no_grad():  # Algorithm 1: the actor follows the critic as just updated
        q_of_actor = model.critic(batch.observations, actions).numpy()
    model.logger.dump(60)
    values = records.dumps[0][1]
    assert values["train/critic_loss"] == pytest.approx(np.mean((y - q) ** 2), rel=1e-5)
    assert values["train/actor_loss"] == pytest.approx(-np.mean(q_of_actor), rel=1e-5)
    assert values["train/q_mean"] == pytest.approx(np.mean(q), rel=1e-5)
    assert values["train/target_q_mean"] == pytest.approx(np.mean(y), rel=1e-5)
    saturation = np.mean(np.abs(actions.numpy()) > 0.99)
    assert 0 < np.mean(actions.numpy() < -0.99) < saturation < 1
    assert values["train/action_saturation"] == pytest.approx(saturation)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_noise_scale_is_logged(n_envs):
    """The factor on the next draw, after as many draws as each environment had steps; 1 without a schedule."""
    noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), LinearDecay(40))
    model = small_model(counting_envs(n_envs, length=10), action_noise=noise)
    records = recorded(model)
    model.learn(60 * n_envs, log_interval=n_envs)
    scales = {step: values["train/noise_scale"] for step, values in records.dumps}
    assert scales == pytest.approx({step * n_envs: max(0.0, 1 - (step - 1) / 40) for step in (10, 20, 30, 40, 50, 60)})

    plain = small_model(CountingEnv(length=10))
    records = recorded(plain)
    plain.learn(20)
    plain.dump_logs()
    assert records.dumps[-1][1]["train/noise_scale"] == 1.0
    silent = small_model(CountingEnv(length=10), action_noise=None)
    records = recorded(silent)
    silent.learn(20)
    silent.dump_logs()
    assert "train/noise_scale" not in records.dumps[-1][1]


@pytest.mark.parametrize("stats_window_size", [1, 3, 100])
def test_rollout_statistics_average_a_window(stats_window_size):
    """Episode k pays k per step: the mean return is that of the last episodes, as many as the window has."""

    class Growing(CountingEnv):
        def step(self, action):
            observation, _, terminated, truncated, info = super().step(action)
            return observation, float(self.episode), terminated, truncated, info

    model = small_model(Growing(length=4), stats_window_size=stats_window_size)
    records = recorded(model)
    model.learn(32, log_interval=8)
    returns = [4.0 * episode for episode in range(8)]
    assert records.dumps[-1][1]["rollout/ep_rew_mean"] == np.mean(returns[-stats_window_size:])
    assert model.ep_info_buffer.maxlen == stats_window_size


def test_tensorboard_files_hold_what_was_logged(tmp_path):
    """The event files' scalars are the logger's values; a continued run stays in its folder."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = small_model(CountingEnv(length=5), tensorboard_log=str(tmp_path))
    model.learn(41, log_interval=2)
    model.learn(20, log_interval=2, reset_num_timesteps=False)
    assert [folder.name for folder in tmp_path.iterdir()] == ["DDPGPaper_1"]
    events = event_accumulator.EventAccumulator(str(tmp_path / "DDPGPaper_1")).Reload()
    tags = set(events.Tags()["scalars"])
    names = ("actor_loss", "critic_loss", "learning_rate", "qf_learning_rate", "q_mean", "target_q_mean")
    assert {f"train/{name}" for name in (*names, "action_saturation", "noise_scale")} <= tags
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= tags
    assert [(event.step, event.value) for event in events.Scalars("rollout/ep_rew_mean")] == [
        (step, 5.0) for step in (10, 20, 30, 40, 50, 60)
    ]
    rates = [event.value for event in events.Scalars("train/qf_learning_rate")]
    np.testing.assert_allclose(rates, 1e-3, rtol=1e-6)
    model.learn(10, tb_log_name="other")
    model.learn(10, tb_log_name="other")
    assert {folder.name for folder in tmp_path.iterdir()} == {"DDPGPaper_1", "other_1", "other_2"}


def test_set_logger(tmp_path):
    """A logger of one's own gets the values, in any of SB3's formats, and is kept."""
    model = small_model(CountingEnv(length=5))
    logger = configure(str(tmp_path), ["csv", "json"])
    model.set_logger(logger)
    model.learn(40, log_interval=4)
    assert model.logger is logger
    logger.close()
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 2
    row = dict(zip(header.split(","), rows[1].split(","), strict=True))
    assert float(row["rollout/ep_rew_mean"]) == 5.0
    assert row["time/total_timesteps"] == "40"
    assert int(row["train/n_updates"]) == 32
    assert (tmp_path / "progress.json").read_text().count("train/critic_loss") == 2


def test_the_logger_survives_new_keys(tmp_path):
    """The first log comes before the first update, the next with its metrics: a CSV file copes."""
    model = small_model(CountingEnv(length=2))
    file = tmp_path / "progress.csv"
    model.set_logger(Logger(folder=str(tmp_path), output_formats=[CSVOutputFormat(str(file))]))
    model.learn(20, log_interval=1)
    model.logger.close()
    header, *rows = file.read_text().splitlines()
    assert "train/critic_loss" in header
    assert len(rows) == 10

"""What training logs: learning rates, metrics, noise, rollout statistics, and the files they end up in."""

import numpy as np
import pytest
import torch as th
from toys import CountingEnv, counting_envs, recorded, small_model

from ddpg_ext import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.ddpg_paper.executors import EXECUTORS
from ddpg_ext.ddpg_paper.update import td_targets


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


@pytest.mark.parametrize("executor", EXECUTORS)
def test_metrics_are_what_they_say(executor):
    """Losses, Q, targets and saturation of one gradient step, computed again by the networks' own forward passes."""
    kwargs = {"policy_kwargs": {"batch_norm": False, "final_init": None}, "executor": executor}
    model = small_model(gradient_steps=0, **kwargs).learn(60)
    records = recorded(model)
    with th.no_grad():  # some actions, but not all, beyond 0.99 on either side
        layer = list(model.actor.mu.children())[-2]
        layer.weight.mul_(4)
        layer.bias.copy_(th.tensor([2.6, -2.6]))
        list(model.actor_target.mu.children())[-2].weight.mul_(-5)
    model.replay_buffer.set_random_seed(1)
    batch = model.replay_buffer.sample(8)
    with th.no_grad():
        q = model.critic(batch.observations, batch.actions).numpy()
        y = td_targets(model.policy, batch, model.gamma).numpy()
        actions = model.actor(batch.observations)
    model.replay_buffer.set_random_seed(1)
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

"""What training logs: learning rates, metrics, noise, rollout statistics, and the files they end up in."""

import numpy as np
import pytest
from toys import CountingEnv, counting_envs, recorded, small_model

from ddpg_ext import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.ddpg_paper.executors import EXECUTORS


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

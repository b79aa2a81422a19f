"""A warning for actors that sit on their bounds or have no gradient, and for no others."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import ToyEnv, toy_vec_env
from toys import ChaosEnv, recorded, small_model

from ddpg_ext import SaturationMonitor


class PushEnv(ChaosEnv):
    """Pays for the action itself, a thousandfold: the shortest way to an actor that sits on its bound."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (2,), np.float32))

    def step(self, action):
        obs, _, *others = super().step(action)
        return obs, 1000 * float(action[0]), *others


def learn(model, steps, monitor):
    """Train, and give back the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(steps, callback=monitor)
    messages = [str(warning.message) for warning in caught]
    return [message for message in messages if not message.startswith("nothing was learned")]  # by frozen models


def test_a_run_that_saturates_is_warned_of_once_with_advice():
    model = small_model(
        PushEnv(), batch_size=16, learning_rate=1e-2, qf_learning_rate=3e-2, policy_kwargs={"batch_norm": False}
    )
    monitor = SaturationMonitor(every=50, patience=2)
    (message,) = learn(model, 700, monitor)
    assert monitor.warned
    assert "the actor no longer learns" in message
    assert "% of its outputs are on the same bound for all observations" in message
    for advice in ("`learning_rate` than 0.01", "batch_norm='actor'", "`VecNormalize`", "smaller rewards"):
        assert advice in message
    # Not again in a second training with the same callback
    assert learn(model, 200, monitor) == []


@pytest.mark.parametrize("env", [ToyEnv(), toy_vec_env(2), ToyEnv(dict_obs=True)], ids=["one", "two", "dict"])
def test_a_normal_run_is_not(env):
    model = small_model(env, "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy")
    monitor = SaturationMonitor(every=40, patience=1)
    assert learn(model, 400, monitor) == []
    assert not monitor.warned


def frozen(env=None, **kwargs):
    """A model that learns next to nothing: it stays what a test makes of it."""
    env = ToyEnv() if env is None else env
    return small_model(env, batch_size=16, learning_rate=1e-30, qf_learning_rate=1e-30, qf_weight_decay=0.0, **kwargs)


def hold_bound(model):
    with th.no_grad():
        model.actor.mu[-2].bias.fill_(6.0)


def test_control_from_one_bound_to_the_other_is_no_finding():
    """Outputs are beyond 0.99 nearly always, with the sign of an observation."""
    model = frozen(policy_kwargs={"batch_norm": False, "net_arch": [2], "action_layer": 1})
    with th.no_grad():
        first, last = model.actor.mu[0], model.actor.mu[2]
        first.weight.copy_(th.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
        last.weight.copy_(1e4 * th.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        first.bias.zero_()
        last.bias.zero_()
    monitor = SaturationMonitor(every=20, patience=1)
    saturations = []
    monitor._on_rollout_end = lambda: saturations.append(model.logger.name_to_value["train/action_saturation"])
    # The gradient is next to nothing for such an actor: only what it does is looked at here
    look = monitor._measure
    monitor._measure = lambda: (*look()[:2], 1.0, 1)
    assert learn(model, 200, monitor) == []
    assert max(saturations) > 0.95


def test_it_takes_several_findings_in_a_row():
    looks = iter([1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    model, monitor = frozen(), SaturationMonitor(every=20, patience=3)
    monitor._measure = lambda: (next(looks), 0.0, 1.0, 1)
    warned = []
    monitor._on_rollout_end = lambda: warned.append(monitor.warned)
    # The first minibatch is complete after 16 steps: looks at 20, 40, ..., 140
    assert len(learn(model, 140, monitor)) == 1
    assert warned.index(True) + 1 == 120


def test_before_learning_has_begun_there_is_nothing_to_find():
    model = frozen(learning_starts=1000)
    hold_bound(model)
    assert learn(model, 200, SaturationMonitor(every=20, patience=1)) == []


def test_a_vanished_gradient():
    """A critic that does not look at the action gives the actor no direction."""
    model = frozen()
    with th.no_grad():
        model.critic.action_input.weight_action.zero_()
    (message,) = learn(model, 100, SaturationMonitor(every=20, patience=1))
    assert "its gradient has almost vanished (norm 0.0e+00)" in message
    assert "batch_norm" not in message  # it has that


def test_advice_leaves_out_what_is_done_already():
    env = VecNormalize(DummyVecEnv([ToyEnv]))
    model = frozen(env, uniform_warmup=True)
    hold_bound(model)
    (message,) = learn(model, 60, SaturationMonitor(every=20, patience=1))
    assert "VecNormalize" not in message
    assert "batch_norm" not in message
    assert "learning_starts" in message


def test_the_norm_is_that_of_the_actors_gradient():
    """Against autograd on the observations that were met, by hand."""
    model = frozen(policy_kwargs={"batch_norm": False})  # whose running averages change
    records = recorded(model)
    met = []
    monitor = SaturationMonitor(every=30, window=25)
    on_step = monitor._on_step
    monitor._on_step = lambda: (met.append(np.array(monitor.locals["new_obs"][0])), on_step())[1]
    model.learn(60, callback=monitor, log_interval=1)
    model.logger.dump(60)

    model.policy.set_training_mode(False)
    obs = th.as_tensor(np.stack(met[-25:]))
    loss = -model.critic(obs, model.actor(obs)).mean()
    model.actor.zero_grad()
    loss.backward()
    expected = th.cat([parameter.grad.flatten() for parameter in model.actor.parameters()]).norm().item()
    logged = [values["train/actor_grad_norm"] for _, values in records.dumps if "train/actor_grad_norm" in values]
    assert logged[-1] == pytest.approx(expected, rel=1e-4)


def test_observations_in_the_same_array_in_each_step():
    """The window must hold different observations, not one array many times."""

    class ReusingVecEnv(DummyVecEnv):
        def step_wait(self):
            obs, *others = super().step_wait()
            self.shared = getattr(self, "shared", obs)
            self.shared[...] = obs
            return self.shared, *others

    monitor = SaturationMonitor(every=1000)
    small_model(ReusingVecEnv([ToyEnv])).learn(30, callback=monitor)
    assert len({obs.tobytes() for obs in monitor._observations}) > 20

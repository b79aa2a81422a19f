"""``DDPGPaper.train`` against an independent NumPy computation of the whole update (``numpy_ddpg.py``)."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from numpy_ddpg import Actor, Critic, NumpyDDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import FlattenExtractor
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper

N_UPDATES = 5


class WeightedSamples(NamedTuple):
    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor
    indices: np.ndarray


class WeightedReplayBuffer(ReplayBuffer):
    """Gives importance weights, as prioritised replay does, and remembers the TD errors that it is told."""

    def sample(self, batch_size, env=None):
        samples = super().sample(batch_size, env)._asdict()
        weights = th.rand(batch_size, 1) + 0.1
        return WeightedSamples(**samples, weights=weights, indices=np.arange(batch_size))

    def update_priorities(self, indices, td_errors):
        self.priorities = (indices, td_errors.numpy().copy())


class DoubleExtractor(FlattenExtractor):
    """Features in double precision, for networks in double precision."""

    def forward(self, observations):
        return super().forward(observations).double()


def fill(buffer, rng, n=150):
    """Random transitions of large scale and uneven centre, a fifth of them the last of an episode."""

    (obs_dim,), action_dim = buffer.obs_shape, buffer.action_dim
    centre, scale = np.resize([3, 0, -1], obs_dim), np.resize([2, 0.3, 1], obs_dim)

    def observation():
        return rng.normal(centre, scale, size=(1, obs_dim)).astype(np.float32)

    obs = observation()
    for _ in range(n):
        next_obs, done = observation(), rng.random(1) < 0.2
        info = {"TimeLimit.truncated": bool(done[0] and rng.random() < 0.5)}
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (1, action_dim)), rng.normal(-2, 3, 1), done, [info])
        obs = observation() if done[0] else next_obs


def tensors_of(network):
    """Parameters and running averages in the order of the layers."""
    return [
        tensor.numpy().astype(np.float64)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ]


def numpy_copy(model):
    policy = model.policy

    def make_actor():
        return Actor(tensors_of(model.actor), len(policy.actor_kwargs["net_arch"]), policy.actor_kwargs["batch_norm"])

    def make_critic():
        kwargs = policy.critic_kwargs
        return Critic(tensors_of(model.critic), len(kwargs["net_arch"]), kwargs["batch_norm"], kwargs["action_layer"])

    return NumpyDDPG(
        make_actor, make_critic, model.learning_rate, model.qf_learning_rate, model.qf_weight_decay, model.gamma,
        model.tau, policy.joint_statistics, policy.optimizer_kwargs.get("eps", 1e-8),
    )  # fmt: skip


def record_minibatches(model, double):
    """The minibatches that ``train`` will sample, as they are; in double precision if asked."""
    minibatches, sample = [], model.replay_buffer.sample

    def recording_sample(batch_size, env=None):
        batch = sample(batch_size, env)
        if double:
            batch = batch._replace(
                **{k: v.double() for k, v in batch._asdict().items() if isinstance(v, th.Tensor) and "obs" not in k}
            )
        minibatches.append(batch)
        return batch

    model.replay_buffer.sample = recording_sample
    return minibatches


def as_arrays(batch):
    def array(name):
        value = getattr(batch, name, None)
        return None if value is None else value.numpy().astype(np.float64)

    names = ("observations", "actions", "rewards", "next_observations", "dones", "discounts")
    weights = array("weights")
    return [array(name) for name in names], 1.0 if weights is None else weights


def moments_of(network):
    """Adam's moments in the order of the network's parameters, and the number of steps."""
    states = [network.optimizer.state[param] for param in network.parameters()]
    assert len({int(state["step"]) for state in states}) == 1
    return [s["exp_avg"].numpy() for s in states], [s["exp_avg_sq"].numpy() for s in states], int(states[0]["step"])


def assert_all_close(ours, theirs, tolerance, what):
    assert len(ours) == len(theirs), what
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=f"{what}, tensor {i}")


PAPER = {"net_arch": [40, 30]}
VARIANTS = {
    "paper": dict(policy_kwargs=PAPER),
    "separate statistics": dict(policy_kwargs=PAPER | {"batch_norm_statistics": "separate"}),
    "minibatches of 2": dict(policy_kwargs=PAPER, batch_size=2),
    "full size": dict(policy_kwargs={}, batch_size=None),
    "no batch norm": dict(policy_kwargs=PAPER | {"batch_norm": False}),
    "batch norm in the actor": dict(policy_kwargs=PAPER | {"batch_norm": "actor"}),
    "batch norm in the critic": dict(policy_kwargs=PAPER | {"batch_norm": "critic"}),
    "action at layer 1": dict(policy_kwargs=PAPER | {"action_layer": 1}),
    "action at layer 3": dict(policy_kwargs={"net_arch": [20, 15, 10], "action_layer": 3}),
    "one hidden layer": dict(policy_kwargs={"net_arch": [20], "action_layer": 1}),
    "linear": dict(policy_kwargs={"net_arch": [], "action_layer": 1}),
    "two shapes": dict(policy_kwargs={"net_arch": {"pi": [25], "qf": [20, 15, 10]}, "action_layer": 2}),
    "saturated": dict(policy_kwargs=PAPER | {"final_init": None}),
    "no weight decay": dict(policy_kwargs=PAPER, qf_weight_decay=0.0),
    "n-step": dict(policy_kwargs=PAPER, n_steps=3),
    "importance weights": dict(policy_kwargs=PAPER, replay_buffer_class=WeightedReplayBuffer),
    "no target networks": dict(policy_kwargs=PAPER, tau=1.0),
}


@pytest.mark.parametrize(
    ("executor", "double"), [("eager", False), ("eager", True), ("fast", False)], ids=["eager", "eager-double", "fast"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_update_equals_numpy(variant, executor, double, silent_logger):
    """
    Weights of the four networks, Adam's moments, running averages, metrics and TD errors, over several updates.

    In the precision that users have to 1e-5; in double precision, where no rounding hides a wrong term, to 1e-9.
    """
    kwargs = {"batch_size": 32, "gamma": 0.97, "tau": 0.01, "learning_rate": 1e-3, "qf_learning_rate": 2e-3}
    kwargs |= VARIANTS[variant]
    if variant == "full size":  # the paper's numbers throughout
        kwargs = dict(VARIANTS[variant])
    if double:
        kwargs["policy_kwargs"] = kwargs["policy_kwargs"] | {"features_extractor_class": DoubleExtractor}
    elif kwargs["policy_kwargs"].get("batch_norm", True):
        # A shift that the next batch normalisation takes out again has gradient zero: in single precision, rounding
        # errors, which Adam would blow up to full steps in random directions (harmless to the function)
        kwargs["policy_kwargs"] = kwargs["policy_kwargs"] | {"optimizer_kwargs": {"eps": 1e-3}}
    model = DDPGPaper("MlpPolicy", ToyEnv(), seed=3, device="cpu", buffer_size=1000, executor=executor, **kwargs)
    model.set_logger(silent_logger)
    if double:
        model.policy.double()
    if variant == "saturated":  # some actions, but not all, are beyond 0.99
        for actor in (model.actor, model.actor_target):
            list(actor.mu.children())[-2].bias.data.copy_(th.tensor([2.6, -2.6]))
    fill(model.replay_buffer, np.random.default_rng(0))
    minibatches = record_minibatches(model, double)
    ours = numpy_copy(model)

    model.train(gradient_steps=N_UPDATES, batch_size=model.batch_size)

    results = []
    for batch in minibatches:
        (s, a, r, next_s, done, discount), weights = as_arrays(batch)
        results.append(ours.update(s, a, r, next_s, done, discount, weights))
    tolerance = 1e-9 if double else 1e-5
    for name in ("actor", "critic", "actor_target", "critic_target"):
        assert_all_close(getattr(ours, name).everything(), tensors_of(getattr(model, name)), tolerance, name)
    for adam, network in ((ours.actor_adam, model.actor), (ours.critic_adam, model.critic)):
        first, second, n_steps = moments_of(network)
        assert_all_close(adam.m, first, tolerance, "first moments")
        assert_all_close(adam.v, second, tolerance, "second moments")
        assert n_steps == N_UPDATES == model._n_updates
    for name in results[0][0]:
        mean = np.mean([metrics[name] for metrics, _ in results])
        assert silent_logger.name_to_value[f"train/{name}"] == pytest.approx(mean, rel=tolerance, abs=tolerance)
    if variant == "saturated":
        assert 0 < silent_logger.name_to_value["train/action_saturation"] < 1
    if variant == "importance weights":
        indices, td_errors = model.replay_buffer.priorities
        np.testing.assert_array_equal(indices, np.arange(32))
        np.testing.assert_allclose(td_errors, results[-1][1], rtol=tolerance, atol=tolerance)
    if variant == "n-step":
        discounts = np.concatenate([batch.discounts.numpy().ravel() for batch in minibatches])
        assert len(np.unique(discounts.round(6))) == 3, "all of gamma, gamma^2, gamma^3 must have been exercised"
    assert any(batch.dones.any() and not batch.dones.all() for batch in minibatches)


def numerical_gradient(function, array, index, step=1e-6):
    original = array[index]
    values = []
    for sign in (1, -1):
        array[index] = original + sign * step
        values.append(function())
    array[index] = original
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(("batch_norm", "n_other"), [(True, 16), (True, 0), (False, 0)])
def test_numpy_gradients_equal_finite_differences(batch_norm, n_other):
    """The reference itself: its hand-written gradients against differences of its losses."""
    kwargs = {"net_arch": [9, 8, 7], "batch_norm": batch_norm, "final_init": None}
    model = DDPGPaper("MlpPolicy", ToyEnv(), seed=1, device="cpu", buffer_size=10, policy_kwargs=kwargs)
    ours, rng = numpy_copy(model), np.random.default_rng(2)
    s, a, y = rng.normal(size=(16, 3)), rng.uniform(-1, 1, size=(16, 2)), rng.normal(size=(16, 1))
    other_s = rng.normal(1, 2, size=(n_other, 3))

    def critic_loss():
        return np.mean((y - ours.critic.forward(s, a, other_s, fit=False)) ** 2)

    def actor_loss():
        return -ours.critic.forward(s, ours.actor.forward(s, fit=False), other_s, fit=False).mean()

    critic_loss()
    ours.critic.backward(-2 / 16 * (y - ours.critic.forward(s, a, other_s, fit=False)))
    critic_grads = [grad.copy() for grad in ours.critic.gradients()]
    actor_loss()
    ours.actor.backward(ours.critic.backward(np.full((16, 1), -1 / 16)))
    for loss, network, grads in (
        (critic_loss, ours.critic, critic_grads),
        (actor_loss, ours.actor, ours.actor.gradients()),
    ):
        for param, grad in zip(network.parameters(), grads, strict=True):
            for index in [tuple(rng.integers(size) for size in param.shape) for _ in range(4)]:
                assert grad[index] == pytest.approx(numerical_gradient(loss, param, index), rel=1e-4, abs=1e-8)

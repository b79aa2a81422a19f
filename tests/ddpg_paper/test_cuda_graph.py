"""The CUDA graph's gradient step. What needs no GPU is tested without one: the step that does not wait for the host."""

import copy

import numpy as np
import pytest
import torch as th

from ddpg_ext import DDPGPaper, InvalidArgumentError, NonFiniteError
from ddpg_ext.ddpg_paper.cuda_graph import minimise_on_device
from ddpg_ext.ddpg_paper.update import gradient_step, update

needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="needs an NVIDIA GPU")


def make_model(**kwargs):
    kwargs = {"executor": "eager", "seed": 0, "learning_starts": 10**6, "device": "cpu", **kwargs}
    return DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs).learn(200)


def difference(a, b):
    return max((x.cpu() - y.cpu()).abs().max().item() for x, y in zip(a.values(), b.values(), strict=True))


def test_step_without_the_host_is_the_same():
    ours, plain = make_model(), make_model()
    for _ in range(20):
        batch = plain.replay_buffer.sample(64)
        ours.policy.set_training_mode(True)
        plain.policy.set_training_mode(True)
        expected = gradient_step(plain.policy, batch, 0.99, 0.01)
        metrics, td_errors = update(ours.policy, batch, 0.99, 0.01, minimise_on_device)
        assert metrics.tolist() == pytest.approx(list(expected.metrics))
        assert th.equal(td_errors, expected.td_errors)
    assert difference(ours.policy.state_dict(), plain.policy.state_dict()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_loss_leaves_weights_and_moments_alone(bad):
    model = make_model(policy_kwargs={"batch_norm": False})
    batch = model.replay_buffer.sample(64)
    update(model.policy, batch, 0.99, 0.01, minimise_on_device)
    critic, adam = copy.deepcopy((model.critic.state_dict(), model.critic.optimizer.state_dict()["state"]))
    metrics, _ = update(model.policy, batch._replace(rewards=batch.rewards * bad), 0.99, 0.01, minimise_on_device)
    assert not np.isfinite(metrics[0].item())
    assert difference(model.critic.state_dict(), critic) == 0
    for index, state in model.critic.optimizer.state_dict()["state"].items():
        assert difference(state, adam[index]) == 0
    assert not hasattr(model.critic.optimizer, "found_inf")


def test_refused_without_a_gpu():
    with pytest.raises(InvalidArgumentError, match="'cuda_graph' does not support networks on cpu"):
        make_model(executor="cuda_graph")


@needs_cuda
@pytest.mark.parametrize("kwargs", [{}, {"policy_kwargs": {"batch_norm": False}}, {"n_steps": 3}])
def test_graph_agrees_with_autograd(kwargs):
    models = {name: make_model(executor=name, device="cuda", **kwargs) for name in ("eager", "cuda_graph")}
    for model in models.values():
        model.replay_buffer.set_random_seed(0)
        model.train(1000, 64)
        assert model.executor in models
    graph = models["cuda_graph"]._executor
    assert graph.graph is not None
    assert not graph.failed
    assert difference(*(model.policy.state_dict() for model in models.values())) < 1e-2
    for a, b in zip(*(model.critic.optimizer.state_dict()["param_groups"] for model in models.values()), strict=True):
        assert a == b


@needs_cuda
def test_graph_finds_a_bad_loss():
    model = make_model(executor="cuda_graph", device="cuda")
    model.train(10, 64)
    weights = copy.deepcopy(model.critic.state_dict())
    batch = model.replay_buffer.sample(64)
    model._executor.step(batch._replace(rewards=batch.rewards * float("nan")), 0.99, 0.01)
    with pytest.raises(NonFiniteError):
        model._executor.read_metrics()
    names = [name for name in weights if "running" not in name]
    assert all(th.equal(weights[name], model.critic.state_dict()[name]) for name in names)

"""User changes of a model, its subclasses and shared objects take effect."""

import copy
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_post_hook
from toys import same, weights

from ddpg_ext import (
    DDPGPaper,
    DDPGPaperError,
    InvalidArgumentError,
    LinearDecay,
    NonFiniteError,
    OrnsteinUhlenbeckNoise,
    ReplayBufferError,
    ScheduledActionNoise,
    SnapshotCallback,
)
from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.layers import ActionInput, BatchNorm
from ddpg_ext.ddpg_paper import MlpPolicy
from ddpg_ext.ddpg_paper.networks import Actor, Critic


def make_model(env="Pendulum-v1", **kwargs):
    kwargs = {"seed": 0, "buffer_size": 1000, "policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    return DDPGPaper("MlpPolicy", env, **kwargs)


def assign_weights(model):
    model.policy.load_state_dict(model.policy.state_dict(), assign=True)


def script_a_layer(model):
    model.actor.mu[1] = th.jit.script(nn.Linear(3, 16))


def freeze(model):
    for param in model.actor.mu[1].parameters():
        param.requires_grad_(False)


def add_hook(model):
    model.critic.q_net.register_forward_hook(lambda *args: None)


def exchange_optimizer(model):
    model.critic.optimizer = th.optim.SGD(model.critic.parameters(), lr=1e-3)


def set_amsgrad(model):
    model.actor.optimizer.param_groups[0]["amsgrad"] = True


def decouple(model):
    model.critic.optimizer.param_groups[0].update(decoupled_weight_decay=True, weight_decay=0.5)
    model.qf_weight_decay = 0.5


def leave_out_the_last_parameter(model):
    model.critic.optimizer.param_groups[0]["params"].pop()


def restart_averages(model):
    for state in model.actor.optimizer.state.values():
        state |= {"step": th.tensor(0.0), "exp_avg": th.zeros_like(state["exp_avg"])}


def restart_the_last_layer(model):
    for param in model.actor.mu[-2].parameters():
        model.actor.optimizer.state[param] = {}


def replace_one_average(model):
    state = model.critic.optimizer.state[model.critic.q_net[-1].weight]
    state.update(exp_avg=th.zeros_like(state["exp_avg"]))


def reverse_parameters(model):
    model.actor.optimizer.param_groups[0]["params"].reverse()


def leave_out_all_parameters(model):
    model.actor.optimizer.param_groups[0]["params"].clear()


def freeze_running_averages(model):
    for module in model.policy.modules():
        if isinstance(module, BatchNorm):
            module.update_running = False


def discount_by_a_tensor(model):
    model.gamma = th.tensor(0.9)


OPTIMIZER_CHANGES = [decouple, leave_out_the_last_parameter, leave_out_all_parameters, reverse_parameters]
OPTIMIZER_CHANGES += [restart_averages, restart_the_last_layer, replace_one_average]


@pytest.mark.filterwarnings("ignore:executor 'fast' does not support")
@pytest.mark.parametrize("change", [*OPTIMIZER_CHANGES, freeze_running_averages, discount_by_a_tensor])
def test_changes_of_optimisers_take_effect(change):
    *models, unchanged = (make_model(executor=executor).learn(70) for executor in ("auto", "eager", "eager"))
    assert models[0].executor == "fast"
    for model in models:
        change(model)
        before = weights(model.policy)
        model.learn(20, reset_num_timesteps=False)
        if change is freeze_running_averages:
            averages = [key for key in before if re.match(r"(actor|critic)\..*running", key)]
            assert all(th.equal(before[key], model.policy.state_dict()[key]) for key in averages)
    for ours, theirs in zip(*(model.policy.state_dict().values() for model in models), strict=True):
        assert th.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    others = weights(unchanged.learn(20, reset_num_timesteps=False).policy)
    has_effect = any(not th.equal(value, others[key]) for key, value in weights(models[1].policy).items())
    assert has_effect == (change is not reverse_parameters)


@pytest.mark.parametrize("change", [freeze, add_hook, exchange_optimizer, set_amsgrad, assign_weights, script_a_layer])
def test_fast_makes_way_for_autograd(change):
    """Where "fast" would not do as told, it says so once, and "eager" goes on; if it was asked for, it raises."""
    asked_for = make_model(executor="fast").learn(70)
    change(asked_for)
    with pytest.raises(InvalidArgumentError, match="executor 'fast' does not support"):
        asked_for.learn(20, reset_num_timesteps=False)
    if change is set_amsgrad:  # which torch's own Adam cannot do in the middle of training
        return
    model = make_model().learn(70)
    assert model.executor == "fast"
    change(model)
    with pytest.warns(UserWarning, match="'fast' does not support .*; training continues with 'eager'") as warnings:
        model.learn(20, reset_num_timesteps=False)
    assert len(warnings) == 1
    assert model.executor == "eager"


def replaced(part, name):
    """Replace a method on an instance by one that reports its calls."""

    def change(model, call):
        owner = part(model)
        original = getattr(owner, name)

        def method(*args, **kwargs):
            call()
            return original(*args, **kwargs)

        setattr(owner, name, method)

    return change


def hooked(part, register):
    def change(model, call):
        getattr(part(model), register)(lambda *args: call())

    return change


#: changes that report calls: by hooks, which torch calls with autograd, and by methods that an instance replaces
CALLED = {
    "gradient hook": hooked(lambda m: m.critic.action_input.bias, "register_hook"),
    "accumulated gradient hook": hooked(lambda m: m.actor.mu[-2].weight, "register_post_accumulate_grad_hook"),
    "forward hook": hooked(lambda m: m.actor.mu[1], "register_forward_hook"),
    "forward pre-hook": hooked(lambda m: m.critic_target, "register_forward_pre_hook"),
    "backward hook": hooked(lambda m: m.critic.q_net, "register_full_backward_hook"),
    "backward pre-hook": hooked(lambda m: m.critic.q_net, "register_full_backward_pre_hook"),
    "optimiser hook": hooked(lambda m: m.actor.optimizer, "register_step_pre_hook"),
    "actor.forward": replaced(lambda m: m.actor, "forward"),
    "actor_target.forward": replaced(lambda m: m.actor_target, "forward"),
    "critic.forward": replaced(lambda m: m.critic, "forward"),
    "a layer's forward": replaced(lambda m: m.critic.state_net[1], "forward"),
    "features": replaced(lambda m: m.actor, "extract_features"),
    "policy._predict": replaced(lambda m: m.policy, "_predict"),
    "policy.predict": replaced(lambda m: m.policy, "predict"),
    "policy.obs_to_tensor": replaced(lambda m: m.policy, "obs_to_tensor"),
    "optimizer.step": replaced(lambda m: m.critic.optimizer, "step"),
}


@pytest.mark.parametrize(
    ("name", "steps_before"), [*((name, 70) for name in CALLED), ("gradient hook", 0), ("critic.forward", 0)]
)
def test_hooks_and_replaced_methods_are_called(name, steps_before):
    model, calls = make_model().learn(steps_before), []
    CALLED[name](model, lambda: calls.append(name))
    with pytest.warns(UserWarning, match="'fast' does not support .*; training continues with 'eager'") as warnings:
        model.learn(90 - steps_before, reset_num_timesteps=False)
    assert len(warnings) == 1
    assert len(calls) >= 20


#: methods of classes that a user may replace
CLASS_METHODS = [
    *((cls, "forward") for cls in (nn.Linear, nn.ReLU, nn.Tanh, nn.Sequential, BatchNorm, ActionInput)),
    *((cls, "forward") for cls in (Actor, Critic, FlattenExtractor)),
    *((nn.Module, "__call__"), (BaseModel, "extract_features"), (th.optim.Adam, "step"), (th.optim.Adam, "zero_grad")),
    *((BasePolicy, "predict"), (BasePolicy, "obs_to_tensor"), (MlpPolicy, "_predict"), (MlpPolicy, "target_pairs")),
]


@pytest.mark.parametrize(
    ("owner", "name", "steps_before"),
    [*((*method, 70) for method in CLASS_METHODS), (Actor, "forward", 0), (th.optim.Adam, "step", 0)],
)
def test_replaced_methods_of_classes_are_called(monkeypatch, owner, name, steps_before):
    model, calls = make_model().learn(steps_before), []
    original = getattr(owner, name)

    def method(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    with pytest.warns(UserWarning, match="'fast' does not support replaced methods .* continues with 'eager'") as told:
        model.learn(90 - steps_before, reset_num_timesteps=False)
    assert len(told) == 1
    assert len(calls) >= 20


@pytest.mark.parametrize("owner", ["class", "instance"])
def test_a_replaced_predict_of_the_model_acts(monkeypatch, owner):
    model, calls, original = make_model().learn(70), [], BaseAlgorithm.predict
    if owner == "class":
        monkeypatch.setattr(BaseAlgorithm, "predict", lambda *args, **kw: calls.append(1) or original(*args, **kw))
    else:
        replaced(lambda m: m, "predict")(model, lambda: calls.append(1))
    model.learn(10, reset_num_timesteps=False)
    assert len(calls) == 10
    assert owner == "class" or model.executor == "fast"


@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer, PackedReplayBuffer])
@pytest.mark.parametrize("name", ["sample", "_get_samples"])
def test_replaced_methods_of_the_replay_buffer_are_called(buffer_class, name):
    model, calls = make_model(replay_buffer_class=buffer_class).learn(70), []
    replaced(lambda m: m.replay_buffer, name)(model, lambda: calls.append(1))
    model.learn(10, reset_num_timesteps=False)
    assert len(calls) == 10


def test_a_replay_buffer_with_samples_of_its_own():
    class OwnSamples(PackedReplayBuffer):
        def _get_samples(self, batch_inds, env=None):
            slots.append(batch_inds)
            return super()._get_samples(batch_inds, env)

    slots = []
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [8]}, "replay_buffer_class": OwnSamples}
    DDPGPaper("MlpPolicy", make_vec_env("Pendulum-v1", 3), **kwargs).learn(99)
    assert {len(batch) for batch in slots} == {64}
    assert 25 < np.concatenate(slots).max() < 33


class OwnRates(DDPGPaper):
    def _update_learning_rate(self, optimizers):
        DDPGPaper._update_learning_rate(self, optimizers)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.0


@pytest.mark.parametrize("executor", ["fast", "eager"])
@pytest.mark.parametrize("how", ["subclass", "instance"])
def test_learning_rates_of_ones_own(executor, how):
    kwargs = {"policy_kwargs": {"net_arch": [8, 8]}, "buffer_size": 99, "executor": executor, "qf_learning_rate": 0.25}
    model = (OwnRates if how == "subclass" else DDPGPaper)("MlpPolicy", "Pendulum-v1", **kwargs)
    if how == "instance":
        model._update_learning_rate = lambda optimizers: OwnRates._update_learning_rate(model, optimizers)
    before = [param.detach().clone() for param in model.policy.parameters()]
    model.learn(70)
    assert model._n_updates == 7
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    assert model.logger.name_to_value["train/qf_learning_rate"] == 0.25


@pytest.mark.parametrize("name", ["predict", "train", "_sample_action", "replay_buffer.sample"])
def test_replaced_methods_are_not_saved(tmp_path, name):
    """Models, snapshots and replay buffers have the class's methods when they are read."""
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 20)
    model = make_model(env=env)
    *path, method = name.split(".")
    replaced(lambda m: getattr(m, *path) if path else m, method)(model, lambda: None)
    model.learn(80, callback=SnapshotCallback(tmp_path, every=30))
    model.save(tmp_path / "model", include=[method])
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    for other in (loaded, DDPGPaper.resume(tmp_path, env)):
        assert method not in vars(getattr(other, *path) if path else other)
        other.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_optimizer_step_post_hook])
def test_global_hooks_are_called(register):
    model, calls = make_model().learn(70), []
    handle = register(lambda *args: calls.append(1))
    try:
        with pytest.warns(UserWarning, match="hooks on modules, parameters or optimisers"):
            model.learn(10, reset_num_timesteps=False)
    finally:
        handle.remove()
    assert calls


def test_an_exchanged_layer_learns():
    model = make_model().learn(100)
    layer = model.actor.mu[1] = type(model.actor.mu[1])(3, 16)
    model.actor.optimizer.param_groups[0]["params"][2:4] = layer.parameters()
    before = layer.weight.detach().clone()
    model.learn(20, reset_num_timesteps=False)
    assert not th.equal(layer.weight, before)


def new_layer(model):
    model.actor.mu[-2] = copy.deepcopy(model.actor.mu[-2])
    with th.no_grad():
        model.actor.mu[-2].bias += 0.3


def moved(model):
    model.policy.to(th.float64)
    model.policy.to(th.float32)
    with th.no_grad():
        model.actor.mu[-2].bias += 0.3


def other_parameters(model):
    policy_kwargs = {"net_arch": [16, 16], "final_init": 0.5}
    model.set_parameters(make_model(seed=7, policy_kwargs=policy_kwargs).get_parameters(), device="cpu")


@pytest.mark.parametrize("change", [new_layer, moved, other_parameters])
def test_the_next_action_is_the_changed_actors(change):
    """A callback may change the actor after the last gradient step and before the next action."""
    model = make_model(action_noise=None, executor="fast", gradient_steps=1).learn(70)
    before = model.predict(model._last_obs)[0]
    model.gradient_steps = 0
    change(model)
    last_obs = model._last_obs
    expected = model.predict(last_obs)[0]
    assert np.abs(expected - before).max() > 1e-3
    taken = []
    model.learn(
        1, callback=lambda locals_, _: taken.append(locals_["actions"].copy()) is None, reset_num_timesteps=False
    )
    np.testing.assert_allclose(taken[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("net_arch", "batch_norm"), [([16, 16], True), ([400, 300], False)])
def test_gradients_stay_in_the_parameters(net_arch, batch_norm):
    """As with autograd: the fast executor leaves the same gradients, which may be clipped or set to zero."""
    kwargs = {"policy_kwargs": {"net_arch": net_arch, "batch_norm": batch_norm}}
    fast, eager = (make_model(executor=executor, **kwargs).learn(66) for executor in ("fast", "eager"))
    assert fast._n_updates == 3
    for ours, theirs in zip(fast.policy.parameters(), eager.policy.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert th.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5 + 1e-3 * theirs.grad.abs().max())
    th.nn.utils.clip_grad_norm_(fast.critic.parameters(), 1e-3)
    fast.actor.optimizer.zero_grad(set_to_none=False)
    fast.learn(1, reset_num_timesteps=False)
    assert all(param.grad.abs().sum() > 0 for param in (*fast.actor.parameters(), *fast.critic.parameters()))


def test_a_noise_is_seeded_by_each_model_that_it_is_given_to():
    shared = OrnsteinUhlenbeckNoise(np.zeros(1))
    make_model(action_noise=shared, seed=0)
    make_model(action_noise=shared, seed=5)
    fresh = OrnsteinUhlenbeckNoise(np.zeros(1))
    make_model(action_noise=fresh, seed=5)
    assert shared.seed is None
    assert np.array_equal([shared() for _ in range(5)], [fresh() for _ in range(5)])


def test_noises_that_differ_are_refused():
    noise = VectorizedActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), 2)
    noise.noises = [OrnsteinUhlenbeckNoise(np.zeros(1), sigma=sigma) for sigma in (0.1, 0.9)]
    with pytest.raises(InvalidArgumentError, match=r"`action_noise` must be the noise of one environment.*sigma=.0.9"):
        make_model(action_noise=noise)


def test_a_callback_sees_and_saves_the_noise(tmp_path):
    """While learning is set up, too, and a noise saved then is reset at the next episode as ever."""

    class SaveFirst(BaseCallback):
        def _init_callback(self):
            self.model.save(tmp_path / "first")

        def _on_step(self):
            return True

    model = make_model().learn(30)
    before = model.action_noise.noise_prev.copy()
    model.learn(1, callback=SaveFirst(), reset_num_timesteps=False)
    loaded = DDPGPaper.load(tmp_path / "first")
    assert np.array_equal(loaded.action_noise.noise_prev, before)
    loaded.action_noise.reset()
    assert np.array_equal(loaded.action_noise.noise_prev, np.zeros(1))


def test_hindsight_starts_with_the_first_complete_episode():
    env = BitFlippingEnv(n_bits=90, continuous=True, max_steps=90)
    model = DDPGPaper("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=1000)
    model.learn(89)
    assert model._n_updates == 0
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates == 20


@pytest.mark.parametrize("part", ["weights", "noise"])
def test_an_action_that_is_not_finite_is_not_the_environments_fault(part):
    model = make_model(learning_starts=500).learn(10)
    if part == "weights":
        model.actor.mu[-2].weight.data.fill_(float("nan"))
    else:
        model.action_noise = OrnsteinUhlenbeckNoise(np.zeros(1))
        model.action_noise.noise_prev[:] = float("nan")
        model.action_noise.reset = lambda: None
    with pytest.raises(NonFiniteError, match=r"the action is nan.*The actor's weights or the noise are not finite"):
        model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("parent", [DDPGPaper, MlpPolicy])
def test_overridden_predict_acts(parent):
    class Constant(parent):
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.full((len(observation), *self.action_space.shape), 0.5, dtype=np.float32), state

    model_class, policy = (Constant, "MlpPolicy") if parent is DDPGPaper else (DDPGPaper, Constant)
    model = model_class(policy, "Pendulum-v1", action_noise=None, policy_kwargs={"net_arch": [8, 8]}).learn(20)
    # Pendulum's torque goes from -2 to 2, and the buffer holds actions scaled to [-1, 1]
    assert np.allclose(model.replay_buffer.sample(50).actions.numpy(), 0.25)


def test_store_transition_sees_every_transition():
    class Recorder(DDPGPaper):
        stored = ()

        def _store_transition(self, replay_buffer, buffer_action, new_obs, reward, dones, infos):
            self.stored = (*self.stored, float(reward[0]))
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    model = Recorder("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs={"net_arch": [8, 8]}).learn(30)
    assert len(model.stored) == 30
    assert set(model.replay_buffer.sample(200).rewards.flatten().tolist()) <= set(map(np.float32, model.stored))


NETWORKS = ("actor", "critic", "actor_target", "critic_target")


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_a_frozen_network_stays_as_it_is_while_the_other_learns(name):
    model = make_model()
    getattr(model, name).requires_grad_(False)
    before = weights(model.policy)
    model.learn(80)
    after = weights(model.policy)
    changed = {key.split(".")[0] for key, _ in model.policy.named_parameters() if not th.equal(before[key], after[key])}
    assert changed == {*NETWORKS} - {name, f"{name}_target"}


@pytest.mark.parametrize(("name", "executor"), [*((name, "fast") for name in NETWORKS), ("critic", "eager")])
def test_a_network_put_in_the_place_of_anothers_is_trained_and_saved(name, executor, tmp_path):
    model, undisturbed = (make_model(executor=executor).learn(70) for _ in range(2))
    setattr(model, name, copy.deepcopy(getattr(model, name)))
    for each in (model, undisturbed):
        each.learn(20, reset_num_timesteps=False)
    assert getattr(model.policy, name) is getattr(model, name)
    assert same(weights(model.policy), weights(undisturbed.policy))
    model.save(tmp_path / "model")
    assert th.equal(*(next(getattr(m, name).parameters()) for m in (DDPGPaper.load(tmp_path / "model"), model)))


@pytest.mark.parametrize("executor", ["fast", "eager"])
@pytest.mark.parametrize("part", ["policy", "actor"])
def test_a_policy_or_actor_of_another_model_stays(part, executor):
    other = make_model(seed=1, policy_kwargs={"net_arch": [16, 16], "final_init": 0.5})
    model = make_model(action_noise=None, executor=executor, learning_rate=1e-9).learn(70)
    if part == "policy":
        model.policy = other.policy
    else:
        model.policy.actor = other.actor
    expected = other.predict(model._last_obs)[0]
    taken = []
    model.learn(5, callback=lambda locals_, _: taken.append(locals_["actions"].copy()), reset_num_timesteps=False)
    np.testing.assert_allclose(taken[0], expected, rtol=1e-5, atol=1e-6)
    assert model.actor is model.policy.actor is other.actor
    assert model.executor == executor


def test_targets_with_other_tensors_are_refused_before_the_step():
    model = make_model().learn(70)
    prune.l1_unstructured(model.actor.mu[1], "weight", 0.3)
    before = weights(model.critic)
    with (
        pytest.warns(UserWarning, match="hooks on modules"),
        pytest.raises(InvalidArgumentError, match="target network must have tensors of the same shapes"),
    ):
        model.train(1)
    assert same(weights(model.critic), before)


@pytest.mark.parametrize("context", [th.no_grad, th.inference_mode])
@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_learning_without_gradients_outside(context, executor):
    models = [make_model(executor=executor) for _ in range(2)]
    models[0].learn(70)
    with context():
        models[1].learn(70)
    assert same(*(weights(model.policy) for model in models))


def test_hooks_on_all_parameters_of_the_policy():
    model, calls = make_model(), []
    for param in model.policy.parameters():
        param.register_hook(lambda grad: calls.append(1) or grad.clamp(-1, 1))
    model.learn(70)
    assert calls


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_a_changed_weight_decay_is_used_and_saved(tmp_path, executor):
    model = make_model(executor=executor).learn(70)
    model.qf_weight_decay = 0.25
    model.save(tmp_path / "before")
    model.train(1)
    model.save(tmp_path / "after")
    for name in ("before", "after"):
        loaded = DDPGPaper.load(tmp_path / name)
        assert [loaded.qf_weight_decay, *(g["weight_decay"] for g in loaded.critic.optimizer.param_groups)] == [
            0.25
        ] * 2
    assert model.critic.optimizer.param_groups[0]["weight_decay"] == 0.25
    model.critic.optimizer.param_groups[0]["weight_decay"] = 0.5  # a change of the group itself
    model.train(1)
    assert model.critic.optimizer.param_groups[0]["weight_decay"] == 0.5
    model.qf_weight_decay = -1.0
    with pytest.raises(InvalidArgumentError, match=r"`qf_weight_decay` must be a number >= 0 \(up to 1e38\), got -1"):
        model.train(1)


def test_an_optimiser_of_another_class_starts_again_in_a_loaded_model(tmp_path):
    model = make_model()
    model.actor.optimizer = th.optim.SGD(model.actor.parameters(), lr=1e-3)
    with pytest.warns(UserWarning, match="an optimiser other than plain Adam"):
        model.learn(70)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="`actor.optimizer` starts again: the model has Adam.*without 'betas'"):
        loaded = DDPGPaper.load(tmp_path / "model", env="Pendulum-v1")
    assert same(weights(model.policy), weights(loaded.policy))
    loaded.learn(70)
    assert loaded._n_updates > model._n_updates


class InPlace(FlattenExtractor):
    def forward(self, observations):
        observations *= 0.5
        return observations


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"batch_norm_statistics": "separate"}])
def test_a_network_that_changes_observations_in_place_is_refused(options):
    """The observations would share the memory of the replay buffer, or of the second forward pass."""
    model = make_model(policy_kwargs={"net_arch": [8], "features_extractor_class": InPlace, **options})
    with pytest.raises(InvalidArgumentError, match="changed its observations in place"):
        model.learn(70)


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_torchs_default_dtype(tmp_path, executor):
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 20)
    model = make_model(env, executor=executor).learn(70, callback=SnapshotCallback(tmp_path, every=20))
    model.save(tmp_path / "model")
    th.set_default_dtype(th.float64)
    try:
        model.learn(70)
        model.train(1, batch_size=8)
        for make in (make_model, lambda: DDPGPaper.load(tmp_path / "model"), lambda: DDPGPaper.resume(tmp_path, env)):
            with pytest.raises(InvalidArgumentError, match=r"default dtype is torch\.float64"):
                make()
    finally:
        th.set_default_dtype(th.float32)
    assert {param.dtype for param in model.policy.parameters()} == {th.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch._replace(rewards=batch.rewards[:, 0]), r"`rewards` .* shape \(64,\)"),
        (lambda batch: batch._replace(dones=batch.dones.bool()), r"`dones` .* shape \(64, 1\) and torch.bool"),
        (lambda batch: batch._replace(discounts=th.ones(64)), r"`discounts` .* shape \(64,\)"),
        (lambda batch: batch._replace(discounts=0.9), "`discounts` .* got 0.9"),
    ],
    ids=["shape", "dtype", "discounts", "number"],
)
@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_minibatches_of_another_shape_are_refused(change, message, executor):
    class OwnSamples(ReplayBuffer):
        def sample(self, batch_size, env=None):
            return change(super().sample(batch_size, env))

    with pytest.raises(ReplayBufferError, match=f"OwnSamples must give minibatches with {message}"):
        make_model(replay_buffer_class=OwnSamples, executor=executor).learn(70)


def test_minibatches_of_whole_numbers():
    class OwnSamples(ReplayBuffer):
        def sample(self, batch_size, env=None):
            batch = super().sample(batch_size, env)
            return batch._replace(rewards=batch.rewards.long(), dones=batch.dones.long())

    assert make_model(replay_buffer_class=OwnSamples).learn(70)._n_updates > 0


def test_a_scheduler_of_torch_on_an_optimiser(recwarn):
    """It adds a key to the optimiser's groups, which other states lack."""
    model, other = make_model().learn(70), make_model().learn(80)
    th.optim.lr_scheduler.StepLR(model.actor.optimizer, 10)
    model.set_parameters(other.get_parameters())
    assert [str(warning.message) for warning in recwarn if "starts again" in str(warning.message)] == []
    steps = {int(state["step"]) for state in model.actor.optimizer.state.values()}
    assert steps == {other._n_updates}


@pytest.mark.parametrize("is_sb3", [False, True])
def test_adams_relatives_start_again(tmp_path, is_sb3):
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [8]}, "learning_starts": 10}
    model = (DDPG if is_sb3 else DDPGPaper)("MlpPolicy", "Pendulum-v1", **kwargs)
    model.actor.optimizer = th.optim.Adamax(model.actor.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(90).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="`actor.optimizer` starts again.*without 'exp_avg_sq'"):
        loaded = DDPGPaper.load(tmp_path / "model", env="Pendulum-v1")
    loaded.learn(90)


def test_a_used_schedule_of_noise_is_named():
    noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), LinearDecay(100))
    make_model(action_noise=noise).learn(50)
    with pytest.warns(UserWarning, match="continues at step 50, because the noise was used before"):
        make_model(action_noise=noise)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_evaluation_in_the_training_environment_ends_the_episode(n_envs):
    """The next transition must not begin before the evaluation and end after it."""
    model = make_model(make_vec_env("Pendulum-v1", n_envs), policy_kwargs={"net_arch": [8]}).learn(300)
    assert_transitions_are_possible_after_evaluation(model)


@pytest.mark.parametrize("way", ["load", "set_env", "resume"])
def test_an_evaluation_before_the_first_call_of_learn_ends_the_episode(tmp_path, way):
    model = make_model(policy_kwargs={"net_arch": [8]})
    model.learn(300, callback=SnapshotCallback(tmp_path / "snapshots", every=150))
    env = model.get_env()
    if way == "load":
        model.save(tmp_path / "model", include=["replay_buffer"])
        model = DDPGPaper.load(tmp_path / "model", env=env, force_reset=False)
    elif way == "set_env":
        model._last_obs = env.reset()
        model.set_env(env, force_reset=False)
    else:
        model = DDPGPaper.resume(tmp_path / "snapshots", make_vec_env("Pendulum-v1"))
    assert_transitions_are_possible_after_evaluation(model)


def assert_transitions_are_possible_after_evaluation(model):
    evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    model.learn(20, reset_num_timesteps=False)
    ring = model.replay_buffer.sample(2000)
    velocity = np.abs(ring.next_observations[:, 2] - ring.observations[:, 2]).max()
    assert velocity <= 3 * 10 / 2 * 0.05 + 3 * 2 * 0.05 + 1e-4, "more than gravity and torque change in a step"


def test_an_episode_continues_in_the_next_call_of_learn():
    model = make_model(policy_kwargs={"net_arch": [8]}).learn(300)
    model.learn(100, reset_num_timesteps=False)
    assert model.env.envs[0].get_episode_lengths() == [200, 200]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gamma", 5), ("tau", 7), ("batch_size", 0), ("train_freq", "x"), ("learning_starts", "x")),
        *(("gradient_steps", 0.5), ("learning_rate", -1.0), ("qf_weight_decay", 1e39), ("executor", None)),
    ],
)
def test_changed_attributes_are_checked_before_training(name, value):
    model = make_model(policy_kwargs={"net_arch": [8]}).learn(300)
    attribute = "_executor_choice" if name == "executor" else name
    former = getattr(model, attribute)
    setattr(model, attribute, value)
    with pytest.raises(DDPGPaperError, match=f"`{name}`"):
        model.learn(10, reset_num_timesteps=False)
    setattr(model, attribute, former)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 310


def test_attributes_may_change_to_other_accepted_forms():
    model = make_model(policy_kwargs={"net_arch": [8]})
    model.train_freq, model.learning_starts, model.action_noise = 3, 1e2, "ornstein-uhlenbeck"
    model.learn(120)
    assert (model.train_freq.frequency, model.learning_starts) == (3, 100)
    assert isinstance(model.action_noise, OrnsteinUhlenbeckNoise)


def test_n_step_returns_follow_a_changed_discount():
    model = make_model(n_steps=3, policy_kwargs={"net_arch": [8]}).learn(100)
    model.gamma = 0.5
    model.train(1)
    np.testing.assert_allclose(model.replay_buffer.sample(8).discounts, 0.125)


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW])
def test_a_new_policy_has_the_models_weight_decay(optimizer):
    kwargs = {"policy_kwargs": {"net_arch": [8], "optimizer_class": optimizer}}
    model, other = make_model(**kwargs), make_model(**kwargs)
    model.policy = MlpPolicy(model.observation_space, model.action_space, lambda _: 1e-3, **kwargs["policy_kwargs"])
    for part in (model, other):
        part.learn(100)
    decays = [
        [group["weight_decay"] for net in (part.actor, part.critic) for group in net.optimizer.param_groups]
        for part in (model, other)
    ]
    assert decays[0] == decays[1] == [0.0, 0.01]


def test_parameters_computed_with_a_gradient_can_be_set():
    """For example the average of two agents."""
    models = [make_model(seed=seed, policy_kwargs={"net_arch": [8]}) for seed in (1, 2)]
    pairs = zip(*(model.policy.named_parameters() for model in models), strict=True)
    average = {name: (x + y) / 2 for (name, x), (_, y) in pairs}
    models[0].set_parameters({"policy": average}, exact_match=False)
    for name, value in models[0].policy.named_parameters():
        assert value.is_leaf
        th.testing.assert_close(value, average[name])


def test_a_failed_set_up_can_be_repeated():
    model = make_model(n_steps=3, policy_kwargs={"net_arch": "x"}, _init_setup_model=False)
    with pytest.raises(DDPGPaperError):
        model._setup_model()
    model.policy_kwargs = {"net_arch": [8]}
    model._setup_model()
    assert (model.n_steps, model.replay_buffer_class, model.replay_buffer.n_steps) == (3, None, 3)


def test_a_noise_that_is_named_later_is_seeded():
    ends = []
    for _ in range(2):
        model = make_model(action_noise=None, policy_kwargs={"net_arch": [8]})
        model.action_noise = "ornstein-uhlenbeck"
        ends.append(weights(model.learn(100).policy))
    assert same(*ends)

"""What carries out the gradient step makes no difference: not to the numbers, nor to what is saved."""

import copy
import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import ConvertCallback
from test_update import WeightedReplayBuffer, fill
from torch import nn
from toy_envs import ToyEnv
from toys import ChaosEnv, LinearExtractor, assert_same_arrays, first, small_model, weights_of

from ddpg_ext import DDPGPaper, InvalidArgumentError, NonFiniteError
from ddpg_ext.common import matmul_kernels
from ddpg_ext.common.matmul_kernels import Processor
from ddpg_ext.ddpg_paper import fast_cpu, update
from ddpg_ext.ddpg_paper.executors import EXECUTORS
from ddpg_ext.ddpg_paper.policies import Actor, DDPGPaperPolicy

#: Executors may round differently, which training carries on. With another kernel for one of them, full-size networks
#: are off by at most 3e-4 after 100 updates, small ones, with weights off by 2e-7 at the start, by 8e-4 after 1,000. A
#: tau that is off by 1% gives 4e-2. (Where this was written, small networks do not differ at all; in full-size
#: ones, what the fast executor sums lies otherwise in memory, which changes the order.)
TOLERANCE = 3e-3

SMALL = {"net_arch": [24, 16]}
NO_NORM = SMALL | {"batch_norm": False}


def make_model(executor, silent_logger, env=None, **kwargs):
    settings = {"seed": 3, "device": "cpu", "buffer_size": 1000, "policy_kwargs": SMALL, "executor": executor}
    model = DDPGPaper("MlpPolicy", ToyEnv() if env is None else env, **{**settings, **kwargs})
    model.set_logger(silent_logger)
    return model


def filled_model(executor, silent_logger, **kwargs):
    model = make_model(executor, silent_logger, **kwargs)
    fill(model.replay_buffer, np.random.default_rng(0))
    return model


def trained_model(executor, silent_logger, n_updates=50, **kwargs):
    model = filled_model(executor, silent_logger, **kwargs)
    model.train(n_updates, model.batch_size)
    return model


def assert_close(ours, theirs, tolerance=TOLERANCE):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


#: (updates in one stretch, stretches, arguments); test_update.py has more variants, over fewer updates
VARIANTS = {
    # Stretches of 50 updates: at this size 1,000 in one go are chaotic, and would blow up any difference
    "full defaults": (50, 2, {"policy_kwargs": {}}),
    "many numbers, 256": (50, 1, {"env": ToyEnv(17, 6), "policy_kwargs": {}, "batch_size": 256}),
    "large layers in a row": (20, 2, {"policy_kwargs": {"net_arch": [400, 300, 300], "batch_norm": False}}),
    "products by oneDNN": (20, 2, {"env": ToyEnv(17, 6), "policy_kwargs": {}}),
    "small": (300, 1, {}),
    "importance weights": (200, 1, {"replay_buffer_class": WeightedReplayBuffer, "policy_kwargs": NO_NORM}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_updates_agree(variant, silent_logger, request, monkeypatch):
    """Weights, running averages, Adam's state, metrics and TD errors; each stretch starts from where "eager" is."""
    n_updates, n_stretches, kwargs = VARIANTS[variant]
    if variant == "products by oneDNN":  # of every size
        request.getfixturevalue("zen_5")
        monkeypatch.setattr(matmul_kernels, "_ONEDNN_MIN_SIZE", 1)
    kwargs = copy.deepcopy(kwargs)
    if kwargs.setdefault("policy_kwargs", SMALL).get("batch_norm", True):
        # As in test_update.py: shifts that the next batch norm takes out have no gradient but rounding errors, which
        # Adam would blow up
        kwargs["policy_kwargs"] = kwargs["policy_kwargs"] | {"optimizer_kwargs": {"eps": 1e-3}}
    models = {executor: filled_model(executor, silent_logger, **kwargs) for executor in ("eager", "fast")}
    start = weights_of(models["eager"])
    for stretch in range(n_stretches):
        if stretch > 0:
            models["fast"].set_parameters(models["eager"].get_parameters(), device="cpu")
        results = []
        for executor, model in models.items():
            assert model.executor == executor
            np.random.seed(stretch)  # the generators of WeightedReplayBuffer
            th.manual_seed(stretch)
            silent_logger.dump(0)  # starts new means
            model.train(n_updates, model.batch_size)
            metrics = {name: np.float64(value) for name, value in silent_logger.name_to_value.items()}
            assert {"train/critic_loss", "train/actor_loss", "train/q_mean"} <= metrics.keys()
            td_errors = getattr(model.replay_buffer, "priorities", (None, np.zeros(0)))[1]
            results.append(weights_of(model) | metrics | {"TD errors": td_errors})
        assert_close(*results)
    assert len(td_errors) == (64 if variant == "importance weights" else 0)
    # They have come a long way, much further than the tolerance
    names = [name for name in start if name.split(".")[-1].startswith("weight") and "target" not in name]
    assert max(np.abs(results[0][name] - start[name]).max() for name in names) > 10 * TOLERANCE


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kwargs", [{"policy_kwargs": {}}, {"n_steps": 3}], ids=["full size", "n-step"])
def test_repeated_bit_for_bit(executor, kwargs, silent_logger):
    once, again = (trained_model(executor, silent_logger, 30, **kwargs) for _ in range(2))
    assert_same_arrays(weights_of(once), weights_of(again))


@pytest.mark.parametrize("kwargs", [{}, {"env": ToyEnv(17, 6), "policy_kwargs": {}}], ids=["small", "full size"])
def test_minibatches_of_changing_size(kwargs, silent_logger):
    """Memory that was allocated for one size does not leak into the next."""
    fast, eager = (filled_model(executor, silent_logger, **kwargs) for executor in ("fast", "eager"))
    for batch_size in (64, 16, 256, 64, 33):
        fast.train(3, batch_size)
        eager.train(3, batch_size)
    assert_close(weights_of(fast), weights_of(eager))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_minibatch_of_one_with_batch_norm(executor, silent_logger):
    """``train`` may be called by hand, with another size than the model's."""
    model = filled_model(executor, silent_logger)
    before = weights_of(model)
    with pytest.raises(InvalidArgumentError, match="`batch_size` must be at least 2"):
        model.train(1, 1)
    assert_same_arrays(before, weights_of(model))


class OwnActorPolicy(DDPGPaperPolicy):
    def make_actor(self):
        own_class = type("OwnActor", (Actor,), {})
        return own_class(**self._update_features_extractor(self.actor_kwargs)).to(self.device)


class FirstActivationPolicy(DDPGPaperPolicy):
    def make_actor(self):
        actor = super().make_actor()
        actor.mu.insert(0, nn.Tanh())
        return actor


class TiedPolicy(DDPGPaperPolicy):
    """The second hidden layer of the actor is applied twice."""

    def make_actor(self):
        actor = super().make_actor()
        linear = next(layer for layer in actor.mu if isinstance(layer, nn.Linear) and layer.in_features == 5)
        actor.mu.insert(list(actor.mu).index(linear) + 1, linear)
        return actor


class TiedWeightPolicy(DDPGPaperPolicy):
    """Two layers of the critic share their weights."""

    def make_critic(self, *args):
        critic = super().make_critic(*args)
        layers = [layer for layer in critic.q_net if isinstance(layer, nn.Linear) and layer.weight.shape == (5, 5)]
        layers[1].weight = layers[0].weight
        return critic


class TwoTanhPolicy(DDPGPaperPolicy):
    def make_actor(self):
        actor = super().make_actor()
        actor.mu.append(nn.Tanh())
        return actor


FLATTEN = "a features extractor other than FlattenExtractor"
UNSUPPORTED = {
    "activation": ({"policy_kwargs": {"activation_fn": nn.ELU}}, "layers other than linear, ReLU, tanh and batch norm"),
    "extractor": ({"policy_kwargs": {"features_extractor_class": LinearExtractor}}, FLATTEN),
    "optimiser": ({"policy_kwargs": {"optimizer_class": th.optim.AdamW}}, "an optimiser other than plain Adam"),
    "amsgrad": ({"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}, "an optimiser other than plain Adam"),
    "own actor": ({"policy": OwnActorPolicy}, "an actor or critic of another class"),
    "activation first": ({"policy": FirstActivationPolicy}, "an activation before the first layer"),
    "one layer twice": ({"policy": TiedPolicy, "policy_kwargs": {"net_arch": [5, 5]}}, "a parameter that occurs twice"),
    "one weight twice": (
        {"policy": TiedWeightPolicy, "policy_kwargs": {"net_arch": [5, 5, 5, 5]}},
        "a parameter that occurs twice",
    ),
    "two tanh": ({"policy": TwoTanhPolicy}, "two tanh in a row"),
    "numbers": ({"env": ChaosEnv(spaces.Discrete(3))}, "observations other than vectors"),
    "images": ({"env": ChaosEnv(spaces.Box(0, 255, (1, 36, 36), np.uint8))}, "observations other than vectors"),
    "dict": ({"policy": "MultiInputPolicy", "env": ToyEnv(dict_obs=True)}, FLATTEN),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_fast_cannot_do(name, capsys):
    """Asked for, it is refused with the reason; left to choose, the model learns with the other and says why."""
    kwargs, reason = UNSUPPORTED[name]
    kwargs = {"policy": "MlpPolicy", "env": ToyEnv(), "device": "cpu", "buffer_size": 100, "batch_size": 8, **kwargs}
    with pytest.raises(InvalidArgumentError) as caught:
        DDPGPaper(executor="fast", **kwargs)
    for part in (f"executor 'fast' does not support {reason}", '`executor="auto"` or "eager"'):
        assert part in str(caught.value)
    model = DDPGPaper(verbose=1, **kwargs)
    assert model.executor == "eager"
    line = f"Gradient steps by the 'eager' executor (executor 'fast' does not support {reason})"
    assert line in capsys.readouterr().out
    assert model.learn(12)._n_updates == 5


@pytest.mark.parametrize(("asked", "given"), [("auto", "fast"), ("fast", "fast"), ("eager", "eager")])
def test_choice(asked, given, capsys, tmp_path):
    settings = {"env": ToyEnv(), "device": "cpu", "buffer_size": 100, "executor": asked}
    model = DDPGPaper("MlpPolicy", **settings, verbose=1)
    assert model.executor == given
    assert f"Gradient steps by the '{given}' executor\n" in capsys.readouterr().out
    DDPGPaper("MlpPolicy", **settings).save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").executor == given
    assert DDPGPaper.load(tmp_path / "model", device="cpu", executor="auto").executor == "fast"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"activation_fn": nn.Tanh},
        {"net_arch": [], "action_layer": 1},
        # A features extractor without parameters
        {"share_features_extractor": True, "optimizer_kwargs": {"eps": 1e-5, "betas": (0.8, 0.99), "foreach": True}},
    ],
)
def test_what_fast_can_do(policy_kwargs, silent_logger):
    kwargs = {"policy_kwargs": SMALL | policy_kwargs}
    ours, theirs = (trained_model(executor, silent_logger, 20, **kwargs) for executor in ("auto", "eager"))
    assert (ours.executor, theirs.executor) == ("fast", "eager")
    assert_close(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(-9, 9, (3,), np.float64), th.float32),  # as the buffer stores it
        (spaces.Box(-9, 9, (2, 3), np.int32), th.int32),
    ],
)
def test_observations_that_fast_converts(space, dtype):
    models = [
        small_model(ChaosEnv(copy.deepcopy(space)), policy_kwargs=SMALL, executor=executor).learn(40)
        for executor in ("auto", "eager")
    ]
    assert [model.executor for model in models] == ["fast", "eager"]
    assert first(models[0].replay_buffer, 4).observations.dtype == dtype
    assert_close(*map(weights_of, models))


@pytest.mark.parametrize("before", EXECUTORS)
@pytest.mark.parametrize("after", EXECUTORS)
def test_one_continues_the_others_work(before, after, tmp_path, silent_logger):
    """Saved by one and loaded by the other: weights and Adam's state are those of a run without a break."""
    whole = trained_model(before, silent_logger, 40)
    half = trained_model(before, silent_logger, 20)
    half.save(tmp_path / "model")
    half.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", executor=after)
    assert loaded.executor == after
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(silent_logger)
    loaded.train(20, loaded.batch_size)
    assert_close(weights_of(loaded), weights_of(whole))
    assert int(weights_of(loaded)["critic.optimizer.action_input.bias.step"]) == 40


def test_saved_names_are_the_same(silent_logger):
    models = [trained_model(executor, silent_logger, 3) for executor in ("fast", "eager")]
    ours, theirs = ({name: (x.shape, x.dtype) for name, x in weights_of(model).items()} for model in models)
    assert ours == theirs
    for name in ("actor.optimizer", "critic.optimizer"):
        ours, theirs = (model.get_parameters()[name]["param_groups"] for model in models)
        assert ours == theirs


@pytest.mark.parametrize("executor", EXECUTORS)
def test_parameters_set_in_mid_training(executor, silent_logger):
    """Back to an earlier state, networks and optimisers, and on from there: the same way again."""
    model = trained_model(executor, silent_logger, 20)
    parameters = copy.deepcopy(model.get_parameters())
    ways = []
    for _ in range(2):
        model.replay_buffer.set_random_seed(5)
        model.train(20, 16)
        ways.append(weights_of(model))
        model.set_parameters(parameters, device="cpu")
    assert_same_arrays(*ways)
    assert int(ways[1]["actor.optimizer.mu.1.weight.step"]) == 40


@pytest.mark.parametrize("change", ["load_state_dict", "clear", "replace"])
def test_an_optimizer_changed_in_mid_training(change, silent_logger):
    """Both executors take a fresh start of Adam's at its word, whatever way it comes about."""
    models = [trained_model(executor, silent_logger, 20) for executor in ("fast", "eager")]
    fresh = make_model("eager", silent_logger).critic.optimizer.state_dict()
    for model in models:
        optimizer = model.critic.optimizer
        if change == "load_state_dict":
            optimizer.load_state_dict(copy.deepcopy(fresh))
        elif change == "clear":
            optimizer.state.clear()
        else:
            model.critic.optimizer = th.optim.Adam(model.critic.parameters(), weight_decay=1e-2)
        model.train(5, 16)
    ours, theirs = map(weights_of, models)
    assert_close(ours, theirs)
    assert int(ours["critic.optimizer.action_input.bias.step"]) == 5
    assert int(ours["actor.optimizer.mu.1.bias.step"]) == 25


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("loss", ["critic loss", "actor loss"])
def test_a_non_finite_loss_reaches_no_weights(executor, loss, silent_logger):
    """The critic's stops everything; the actor's comes after the critic's step, and stops the rest."""

    def learned():
        """Networks that must not change, without their running averages."""
        arrays = weights_of(model).items()
        return {name: array for name, array in arrays if name.split(".")[0] in unharmed and "running" not in name}

    model = trained_model(executor, silent_logger, 20)
    unharmed = ["actor", "actor_target", "critic_target"]
    if loss == "critic loss":  # rewards whose square is too large for single precision
        unharmed.append("critic")
        model.replay_buffer.reset()
        obs = np.zeros((1, 3), np.float32)
        model.replay_buffer.add(obs, obs, np.zeros((1, 2), np.float32), np.array([3e30]), np.array([True]), [{}])
    else:
        with th.no_grad():
            list(model.actor.mu.children())[-2].bias[0] = float("nan")
    before, n_updates = learned(), model._n_updates
    message = f"step 0, gradient step 21: the {loss} is (nan|inf).*can still be saved. Use lower learning rates"
    with pytest.raises(NonFiniteError, match=message):
        model.train(1, 64)
    after = learned()
    assert [name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)] == []
    assert model._n_updates == n_updates
    assert all(param.requires_grad for param in model.critic.parameters())


@pytest.fixture
def precision():
    before = th.get_float32_matmul_precision()
    yield before
    after = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision(before)
    assert after == before


@pytest.mark.parametrize(("executor", "asked"), [("fast", "medium"), ("eager", "high"), ("fast", None)])
@pytest.mark.parametrize("amx", [True, False])
def test_matmul_precision_during_learning_alone(executor, asked, amx, precision, monkeypatch):
    """Gradient steps and acting run in the precision that was asked for, if the CPU has AMX, and nothing after that."""
    monkeypatch.setattr(
        matmul_kernels, "detect_processor", lambda: Processor("GenuineIntel", "6", avx512=True, amx=amx)
    )
    seen, step = [], EXECUTORS[executor].step
    note = ConvertCallback(lambda *_: seen.append(th.get_float32_matmul_precision()) is None)

    def spy(*args):
        seen.append(th.get_float32_matmul_precision())
        return step(*args)

    monkeypatch.setattr(EXECUTORS[executor], "step", spy)
    small_model(ToyEnv(), executor=executor, matmul_precision=asked).learn(20, note)
    assert len(seen) == 20 + 13
    assert set(seen) == {asked if asked and amx else precision}


def test_matmul_precision_is_restored_after_an_error(precision):
    env = ToyEnv(fault=("reward", 5, float("nan")))
    with pytest.raises(NonFiniteError):
        small_model(env, matmul_precision="medium").learn(10)
    assert th.get_float32_matmul_precision() == precision


def test_acting_does_not_change_the_observations():
    model = DDPGPaper(FirstActivationPolicy, ToyEnv(), buffer_size=100)
    observations = np.full((1, *model.observation_space.shape), 3.0, np.float32)
    model._executor.act(observations)
    assert (observations == 3).all()


def raises(*args, **kwargs):
    raise TypeError("another signature")


#: private operators of torch: the one that is called, and the overload of it that writes into given memory
OPERATORS = {
    "_fused_adam_": (th, None),
    "native_batch_norm": (th, None),
    "native_batch_norm_backward": (th.ops.aten, None),
    "threshold_backward": (th.ops.aten, "grad_input"),
    "tanh_backward": (th.ops.aten, "grad_input"),
}


def replace_operator(monkeypatch, name, replacement):
    owner, overload = OPERATORS[name]
    original = getattr(owner, name)
    replaced = functools.partial(replacement, original if overload is None else getattr(original, overload))
    monkeypatch.setattr(owner, name, replaced if overload is None else SimpleNamespace(**{overload: replaced}))


def halved(operator, *args, **kwargs):
    """Return half of the first result; Adam has none, so it gets half the learning rate."""
    if "lr" in kwargs:
        return operator(*args, **kwargs | {"lr": kwargs["lr"] / 2})
    result = operator(*args, **kwargs)
    (result if isinstance(result, th.Tensor) else result[0]).mul_(0.5)
    return result


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        *((name, halved) for name in OPERATORS),
        *((name, raises) for name in [*OPERATORS][1:]),
    ],  # Adam itself needs the first
)
def test_autograd_replaces_an_operator_that_fails_the_self_test(name, replacement, monkeypatch):
    fast_cpu.agrees_with_autograd.cache_clear()
    try:
        assert fast_cpu.agrees_with_autograd()
        fast_cpu.agrees_with_autograd.cache_clear()
        replace_operator(monkeypatch, name, replacement)
        assert small_model(ToyEnv())._executor.name == "eager"
        with pytest.raises(InvalidArgumentError, match=f"does not support torch {re.escape(th.__version__)}"):
            small_model(ToyEnv(), executor="fast")
    finally:
        fast_cpu.agrees_with_autograd.cache_clear()


@pytest.mark.parametrize("mode", [th.inference_mode, th.no_grad, lambda: th.autocast("cpu"), lambda: th.device("meta")])
def test_the_self_test_does_not_depend_on_the_callers_mode(mode):
    fast_cpu.agrees_with_autograd.cache_clear()
    state = th.random.get_rng_state()
    with mode():
        assert fast_cpu.agrees_with_autograd()
    assert th.equal(th.random.get_rng_state(), state)


def test_the_self_test_does_not_depend_on_the_default_type():
    fast_cpu.agrees_with_autograd.cache_clear()
    th.set_default_dtype(th.float64)
    try:
        assert fast_cpu.agrees_with_autograd()
    finally:
        th.set_default_dtype(th.float32)


@pytest.mark.parametrize("replacement", [raises, lambda targets, onlines, tau: None])
def test_a_loop_replaces_the_operator_for_targets(replacement, monkeypatch):
    targets, onlines = [th.zeros(2), th.ones(3, 3)], [th.ones(2), th.full((3, 3), 5.0)]
    assert update._find_lerp() is th._foreach_lerp_
    monkeypatch.setattr(th, "_foreach_lerp_", replacement)
    update._find_lerp()(targets, onlines, 0.25)
    assert th.equal(targets[0], th.full((2,), 0.25))
    assert th.equal(targets[1], th.full((3, 3), 2.0))


def test_a_copied_critic_as_target_has_the_same_averages_in_both(silent_logger):
    """Running averages of a target track the online network, and no minibatch."""
    averages = []
    for executor in ("fast", "eager"):
        model = trained_model(executor, silent_logger, n_updates=5)
        model.critic_target = copy.deepcopy(model.critic)
        model.train(5, model.batch_size)
        averages.append(weights_of(model))
    assert_close(*averages)


def test_copied_targets_have_the_same_averages_in_both(silent_logger):
    """``copy.deepcopy`` of the online networks sets the targets to them."""
    averages = []
    for executor in ("fast", "eager"):
        model = trained_model(executor, silent_logger, n_updates=5)
        model.actor_target, model.critic_target = copy.deepcopy(model.actor), copy.deepcopy(model.critic)
        model.train(5, model.batch_size)
        averages.append(weights_of(model))
    assert_close(*averages)


def test_a_parameter_that_its_network_does_not_use(silent_logger):
    """Adam skips it, because it has no gradient."""
    model = filled_model("auto", silent_logger)
    for network in (model.actor, model.actor_target):
        network.unused = nn.Linear(3, 3)
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-4)
    with pytest.warns(UserWarning, match="parameters in an optimiser that its network does not use"):
        model.train(2, model.batch_size)
    assert model.executor == "eager"


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_a_target_that_is_its_network_does_not_stop_the_averages(executor, silent_logger):
    model = filled_model(executor, silent_logger)
    model.actor_target = model.actor
    model.train(3, model.batch_size)
    assert model.actor.mu[0].running_mean.abs().min() > 0


def test_a_hook_while_the_first_model_is_made_does_not_disable_the_executor():
    fast_cpu.agrees_with_autograd.cache_clear()
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 1.5)
    try:
        assert small_model(ToyEnv())._executor.name == "eager"
    finally:
        hook.remove()
    assert small_model(ToyEnv())._executor.name == "fast"

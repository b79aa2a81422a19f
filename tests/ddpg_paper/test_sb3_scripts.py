"""A script made for SB3's DDPG runs: its policies, arguments, environments and habits."""

import pickle
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer, ddpg, td3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from toy_envs import ToyEnv, toy_vec_env
from toys import ChaosEnv, CountingEnv

from ddpg_ext import (
    CheckpointError,
    DDPGPaper,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    SnapshotCallback,
    UntrustedContentError,
)
from ddpg_ext.ddpg_paper import CnnPolicy, MlpPolicy, MultiInputPolicy


def make_model(policy="MlpPolicy", env=None, cls=DDPGPaper, **kwargs):
    settings = {"buffer_size": 500, "batch_size": 8, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return cls(policy, ToyEnv() if env is None else env, **{**settings, **kwargs})


@pytest.mark.parametrize(
    ("net_arch", "action_layer"),
    [([64], 1), ([], 1), ({"pi": [], "qf": [64]}, 1), ({"pi": [64], "qf": []}, 1), ({"pi": [8], "qf": [8, 8]}, 2)],
)
def test_few_hidden_layers(net_arch, action_layer, tmp_path):
    """The action enters at the last hidden layer if there are fewer than ``default_action_layer``."""
    model = make_model(policy_kwargs={"net_arch": net_arch}).learn(20)
    assert model.critic.action_layer == action_layer
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").critic.action_layer == action_layer


@pytest.mark.parametrize("sb3_class", [DDPG, td3.TD3])
def test_a_dict_that_sb3_has_seen(sb3_class, tmp_path):
    shared = {"net_arch": [8, 8]}
    sb3_class("MlpPolicy", ToyEnv(), policy_kwargs=shared, buffer_size=10)
    shared["use_sde"] = False  # as SB3's SAC writes
    before = dict(shared)
    model = make_model(policy_kwargs=shared).learn(20)
    assert shared == before
    model.save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", policy_kwargs=shared, device="cpu")


@pytest.mark.parametrize(
    ("name", "policy", "env"),
    [
        ("MlpPolicy", MlpPolicy, ToyEnv()),
        ("CnnPolicy", CnnPolicy, FakeImageEnv(2, 40, 40, 2, discrete=False)),
        ("MultiInputPolicy", MultiInputPolicy, ToyEnv(dict_obs=True)),
    ],
)
def test_policies_of_sb3(name, policy, env, tmp_path):
    assert make_model(getattr(td3, name), env).policy_class is policy
    model = make_model(getattr(ddpg, name), env)
    assert model.policy_class is policy
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").policy_class is policy


def test_sizes_of_features():
    image = gym.spaces.Box(0, 255, (2, 40, 40), np.uint8)
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 16}}
    model = make_model("CnnPolicy", ChaosEnv(image), policy_kwargs=kwargs).learn(20)
    features = model.actor.extract_features(th.zeros(1, 2, 40, 40), model.actor.features_extractor)
    assert features.shape == (1, 16)
    assert (features >= 0).all()
    space = gym.spaces.Dict(image=image, x=gym.spaces.Box(-1, 1, (3,)))
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 16, "normalized_image": False}}
    model = make_model("MultiInputPolicy", ChaosEnv(space), policy_kwargs=kwargs)
    assert model.actor.features_extractor.features_dim == 16 + 3


@pytest.mark.parametrize("n_envs", [1, 3])
def test_noise_of_one_number(n_envs):
    noise = NormalActionNoise(np.full(1, 0.5), np.zeros(1))
    model = make_model(env=toy_vec_env(n_envs), action_noise=noise, learning_starts=1000).learn(12)
    policy_actions = model.policy.scaled_actions(model.replay_buffer.sample(50).observations.numpy())
    # The noise is the same in both dimensions, and the untrained policy's actions are close to 0
    assert np.abs(policy_actions).max() < 0.2
    assert np.abs(model.replay_buffer.sample(50).actions.numpy() - 0.5).max() < 0.2


def test_batch_norm_counts_nothing_that_stands_still():
    model = make_model()
    state = model.policy.state_dict()
    assert not [name for name in state if "num_batches_tracked" in name]
    # Files of earlier versions have the count
    state |= {name.replace("running_mean", "num_batches_tracked"): th.tensor(0) for name in state if "mean" in name}
    model.policy.load_state_dict(state)


@pytest.mark.parametrize("how", ["load", "resume", "set_env"])
def test_an_id_is_an_environment(how, tmp_path):
    model = make_model(env="Pendulum-v1")
    if how == "resume":
        model.learn(210, callback=SnapshotCallback(tmp_path, every=200))
        model = DDPGPaper.resume(tmp_path, "Pendulum-v1", device="cpu")
    elif how == "load":
        model.save(tmp_path / "model")
        model = DDPGPaper.load(tmp_path / "model", env="Pendulum-v1", device="cpu")
    else:
        model.set_env("Pendulum-v1")
    assert model.env.num_envs == 1
    model.learn(10, reset_num_timesteps=False)


def test_learning_without_an_environment(tmp_path):
    model = make_model()
    with pytest.raises(InvalidArgumentTypeError, match="`env` must be an environment, a VecEnv or an id, got 3"):
        model.set_env(3)
    model.save(tmp_path / "model")
    with pytest.raises(
        InvalidArgumentError, match="no environment to learn in; call `set_env`, or load the model with `env=`"
    ):
        DDPGPaper.load(tmp_path / "model", device="cpu").learn(10)


def test_a_deleted_replay_buffer(tmp_path):
    model = make_model().learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    del model.replay_buffer
    model.save(tmp_path / "model")
    model.set_env(ToyEnv())
    model.set_random_seed(1)
    with pytest.raises(InvalidArgumentTypeError, match="no replay buffer to save"):
        model.save_replay_buffer(tmp_path / "none")
    DDPGPaper.load(tmp_path / "model", env=ToyEnv(), device="cpu").learn(10)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 20
    del model.replay_buffer
    assert model.learn(10, reset_num_timesteps=False).replay_buffer.size() == 10


def test_a_buffer_moves_with_the_device(tmp_path):
    model = make_model(replay_buffer_class=ReplayBuffer).learn(20)
    model.replay_buffer.device = th.device("meta")  # as if it were another device
    model.save(tmp_path / "model", include=["replay_buffer"])
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", env=ToyEnv())
    assert loaded.replay_buffer.device == th.device("cpu")
    assert loaded.replay_buffer.sample(4).observations.device == th.device("cpu")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.device == th.device("cpu")


class Generous(BitFlippingEnv):
    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.full(len(achieved_goal), 7.0, dtype=np.float32)


def test_hindsight_asks_the_environment_that_was_set():
    def env(env_class):
        return env_class(n_bits=4, continuous=True, max_steps=4)

    model = make_model("MultiInputPolicy", env(BitFlippingEnv), replay_buffer_class=HerReplayBuffer, learning_starts=99)
    model.learn(20)
    model.set_env(env(Generous))
    rewards = model.replay_buffer.sample(100).rewards
    assert (rewards == 7).float().mean() > 0.5


@pytest.mark.parametrize(
    ("keyword", "cure"),
    [
        ("critic_learning_rate", "did you mean 'qf_learning_rate'"),
        ("actor_lr", "did you mean 'learning_rate'"),
        ("buffersize", "did you mean 'buffer_size'"),
        ("net_arch", "pass `policy_kwargs=dict(net_arch=...)`"),
        ("q", "known: '"),
        ("policy_delay", "use SB3's TD3"),
    ],
)
def test_misspelt_keyword(keyword, cure, tmp_path):
    class Mine(DDPGPaper):
        def __init__(self, *args, extra=1, **kwargs):
            super().__init__(*args, **kwargs)

    make_model().save(tmp_path / "model")
    makers = {
        "DDPGPaper": make_model,
        "Mine": lambda **kwargs: make_model(cls=Mine, **kwargs),
        r"load\(\)": lambda **kwargs: DDPGPaper.load(tmp_path / "model", **kwargs),
    }
    for name, maker in makers.items():
        with pytest.raises(InvalidArgumentTypeError, match=f"{name} got the keyword '{keyword}'") as caught:
            maker(**{keyword: 1})
        assert cure.lower() in str(caught.value).lower()


def test_a_pickle_has_no_environment_under_its_normalisation():
    model = pickle.loads(pickle.dumps(make_model(env=VecNormalize(toy_vec_env(1))).learn(20)))
    with pytest.raises(InvalidArgumentError, match="no environment to learn in; call `set_env`"):
        model.learn(20)
    model.set_env(VecNormalize(toy_vec_env(1)))
    model.learn(20)


def test_what_is_no_callback():
    for callback in (CheckpointCallback, [CheckpointCallback], 3, [lambda *args: True], (None,)):
        with pytest.raises(InvalidArgumentTypeError, match="`callback` must be"):
            make_model().learn(10, callback=callback)


@pytest.mark.skipif(th.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.warns(UserWarning, match="torch finds no GPU for `device='cuda:0'`; the model is on the CPU") as caught:
        model = make_model(device="cuda:0")
    assert len(caught) == 1
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="no GPU") as caught:
        DDPGPaper.load(tmp_path / "model", device="cuda")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(device="auto")


class Masked(BaseFeaturesExtractor):
    """A constant with infinities, and a view across the batch, as in attention."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        self.linear = nn.Linear(1, 1)
        self.register_buffer("mask", th.tensor([0.0, -th.inf]))

    def forward(self, observations):
        return self.linear(observations.view(-1, 1)).view(len(observations), -1) + self.mask.exp()[0]


def test_a_features_extractor_with_a_mask_and_views():
    model = make_model(policy_kwargs={"net_arch": [8], "features_extractor_class": Masked}).learn(40)
    assert th.equal(model.actor_target.features_extractor.mask, th.tensor([0.0, -th.inf]))
    assert model._n_updates > 20


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_networks_may_be_called_after_training(executor):
    """With batch norm in training mode, a single observation would fail, and several would change its averages."""
    model = make_model(executor=executor).learn(40)
    observations = np.random.default_rng(0).uniform(-1, 1, (5, *model.observation_space.shape)).astype(np.float32)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    expected, _ = model.predict(observations)
    for n in (1, 5):
        actions = model.policy(th.from_numpy(observations[:n])).detach().numpy()
        np.testing.assert_allclose(model.policy.unscale_action(actions), expected[:n], atol=1e-5)
    assert all(th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())


def test_new_learning_rates_of_a_live_model():
    model = make_model().learn(20)
    model.learning_rate, model.qf_learning_rate = 1e-5, 2e-5
    model._setup_lr_schedule()
    model.learn(5, reset_num_timesteps=False)
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-5
    assert model.critic.optimizer.param_groups[0]["lr"] == 2e-5


def test_a_logger_that_is_set_before_the_set_up(tmp_path):
    model = make_model(_init_setup_model=False)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model._setup_model()
    model.learn(60, log_interval=1)
    model.logger.dump(60)
    assert "train/critic_loss" in (tmp_path / "progress.csv").read_text()


def test_a_subclass_that_stores_transitions_itself():
    class Storing(DDPGPaper):
        def _store_transition(self, replay_buffer, buffer_action, new_obs, reward, dones, infos):
            replay_buffer.add(self._last_obs, new_obs, buffer_action, reward, dones, infos)
            self._last_obs = new_obs

    env = CountingEnv(length=100)
    model = make_model(env=env, cls=Storing, replay_buffer_class=ReplayBuffer)
    for _ in range(4):
        model.learn(10, reset_num_timesteps=False)
    assert env.episode == 0


def test_a_noise_that_gets_its_model_later():
    class Decay(ActionNoise):
        model = None

        def __call__(self):
            return np.full(2, 0.1 * self.model._current_progress_remaining)

    noise = Decay()
    model = make_model(action_noise=noise)
    noise.model = model
    model.learn(20)


def test_a_buffer_around_another_store():
    """SB3 does not call ``size``."""

    class Wrapped(ReplayBuffer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.store = ReplayBuffer(*args, **kwargs)

        def add(self, *args):
            self.store.add(*args)

        def sample(self, *args, **kwargs):
            return self.store.sample(*args, **kwargs)

    assert make_model(replay_buffer_class=Wrapped).learn(20)._n_updates > 0


def test_a_container_of_callbacks_that_is_filled_later():
    class Later(BaseCallback):
        callbacks = None

        def _on_step(self):
            return True

    make_model().learn(10, Later())


def test_callbacks_of_ones_own_have_attributes_of_their_own():
    """Also under the names that SB3's containers use: a count, a class, and the container itself."""

    class Own(BaseCallback):
        def __init__(self):
            super().__init__()
            self.callbacks, self.callback, self.callback_on_new_best = 0, BaseCallback, self

        def _on_step(self):
            self.callbacks += 1
            return True

    class Group(BaseCallback):
        def __init__(self, children):
            super().__init__()
            self.callbacks = children
            for child in children:
                child.callback = self

        def _on_step(self):
            return True

    own, model = Own(), make_model()
    for _ in range(2):
        model.learn(10, [own, Group([Own(), Own()])])
    assert own.callbacks == 20


def test_buffers_of_ones_own_have_methods_of_their_own():
    """``update_priorities`` and ``end_episodes`` without the arguments that prioritised replay and HER need."""

    class Own(ReplayBuffer):
        n_ends = 0

        def update_priorities(self):
            raise NotImplementedError

        def end_episodes(self):
            self.n_ends += 1

    model = make_model(replay_buffer_class=Own, learning_starts=5, batch_size=4)
    for _ in range(2):
        model.learn(20)
    assert model._n_updates > 0
    assert model.replay_buffer.n_ends == 0


def test_arguments_of_learn_that_sb3_takes():
    """The name for TensorBoard is not used without it; the sign of the interval makes no difference in SB3."""
    logged = []
    model = make_model(env=CountingEnv(length=5))
    model._dump_logs = model.dump_logs = lambda *args: logged.append(model.num_timesteps)
    model.learn(20, tb_log_name=None, log_interval=-2)
    assert logged == [10, 20]


def test_information_that_nobody_reads():
    model = make_model(replay_buffer_kwargs={"handle_timeout_termination": False})
    obs = np.zeros(model.observation_space.shape, np.float32)
    for infos in (None, [], {}):
        model.replay_buffer.add(obs, obs, np.zeros(model.action_space.shape), 0.0, False, infos)
    assert model.replay_buffer.size() == 3


def test_optimiser_of_sb3(tmp_path):
    model = make_model(policy_kwargs={"net_arch": [8], "optimizer_class": RMSpropTFLike}, qf_weight_decay=0.0).learn(30)
    model.save(tmp_path / "model")
    assert type(DDPGPaper.load(tmp_path / "model").actor.optimizer) is RMSpropTFLike


def test_derivatives_of_large_networks():
    """Gradient penalties, ``torch.func`` and tracing, on every processor."""
    model = make_model(policy_kwargs={"net_arch": [400, 300], "batch_norm": False})
    n, generator = 2048, th.Generator().manual_seed(0)
    observations = th.rand(n, *model.observation_space.shape, generator=generator, requires_grad=True)
    actions = th.rand(n, *model.action_space.shape, generator=generator)
    (gradient,) = th.autograd.grad(model.critic(observations, actions).sum(), observations, create_graph=True)
    penalty = gradient.square().mean()
    penalty.backward()
    weight = model.critic.action_input.weight_features
    step = 1e-2 * th.randn(weight.shape, generator=generator)
    values = []
    for sign in (-1, 1):
        with th.no_grad():
            weight.add_(step, alpha=sign)
        (gradient,) = th.autograd.grad(model.critic(observations, actions).sum(), observations)
        values.append(gradient.double().square().mean())
        with th.no_grad():
            weight.sub_(step, alpha=sign)
    assert (values[1] - values[0]) / 2 == pytest.approx((weight.grad * step).sum().item(), rel=0.05)
    parameters = dict(model.actor.named_parameters())

    def loss(parameters):
        return th.func.functional_call(model.actor, parameters, observations.detach()).sum()

    gradients = th.func.grad(loss)(parameters)
    expected = th.autograd.grad(loss(parameters), list(parameters.values()))
    for ours, theirs in zip(gradients.values(), expected, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    traced = th.jit.trace(model.actor, observations.detach())
    th.testing.assert_close(traced(observations), model.actor(observations), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_samples_that_are_no_tuple(executor):
    class Objects(ReplayBuffer):
        def sample(self, *args, **kwargs):
            return SimpleNamespace(**super().sample(*args, **kwargs)._asdict())

    assert make_model(replay_buffer_class=Objects, executor=executor).learn(20)._n_updates > 0


class StepSchedule:
    """A schedule by a class of the script, which the file may not create."""

    def __call__(self, remaining):
        return 1e-3 if remaining > 0.5 else 1e-4


class OwnNoise(ActionNoise):
    def __call__(self):
        return np.full(2, 0.1)


@pytest.mark.parametrize(
    ("argument", "saved", "new"),
    [
        ("learning_rate", StepSchedule(), 2e-4),
        ("learning_rate", lambda remaining: 1e-3 if remaining > 0.5 else 1e-4, 2e-4),
        ("qf_learning_rate", StepSchedule(), 2e-4),
        ("action_noise", OwnNoise(), None),
        ("action_noise", OwnNoise(), NormalActionNoise(np.zeros(2), np.ones(2))),
    ],
)
def test_what_an_argument_of_load_replaces_is_not_read(argument, saved, new, tmp_path):
    make_model(**{argument: saved}).learn(20).save(tmp_path / "model")
    with pytest.raises(UntrustedContentError):
        DDPGPaper.load(tmp_path / "model")
    model = DDPGPaper.load(tmp_path / "model", env=ToyEnv(), **{argument: new}).learn(20)
    assert getattr(model, argument) is new or getattr(model, argument) == new
    if argument != "action_noise":
        assert getattr(model, {"learning_rate": "lr_schedule"}.get(argument, "qf_lr_schedule"))(1.0) == new


def test_an_argument_of_load_for_a_file_of_sb3(tmp_path):
    """Its learning rate is that of the critic, too, which the argument leaves alone."""
    DDPG("MlpPolicy", ToyEnv(), learning_rate=3e-3, action_noise=OwnNoise()).save(tmp_path / "model")
    model = DDPGPaper.load(tmp_path / "model", learning_rate=1e-5, action_noise=None)
    assert (model.learning_rate, model.qf_learning_rate, model.action_noise) == (1e-5, 3e-3, None)


def test_a_file_without_its_noise_says_that_the_default_replaces_it(tmp_path):
    make_model(action_noise=OwnNoise()).save(tmp_path / "model", exclude=["action_noise"])
    with pytest.warns(UserWarning, match="has no `action_noise`, so the default noise is used; pass action_noise="):
        DDPGPaper.load(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DDPGPaper.load(tmp_path / "model", action_noise=None).action_noise is None


@pytest.mark.parametrize("name", ["learning_starts", "batch_size"])
def test_a_file_without_a_number_names_the_argument(name, tmp_path):
    make_model().save(tmp_path / "model", exclude=[name])
    with pytest.raises(CheckpointError, match=f"it has no `{name}`; pass {name}=... to `load`"):
        DDPGPaper.load(tmp_path / "model")
    assert getattr(DDPGPaper.load(tmp_path / "model", **{name: 7}), name) == 7


@pytest.mark.parametrize(("dims", "noise"), [((2,), 0.5), ((2,), [[0.5, -0.5]]), ((2, 2), [0.5, -0.5])])
def test_noise_is_broadcast_to_the_actions(dims, noise):
    """For one environment, as in SB3; several environments stack their noises."""

    class Broadcast(ActionNoise):
        def __call__(self):
            return np.float32(noise)

    env = CountingEnv(action_space=gym.spaces.Box(-1, 1, dims, np.float32))
    model = make_model(env=env, action_noise=Broadcast(), learning_starts=100, policy_kwargs={"final_init": 1e-9})
    model.learn(5)
    actions = model.replay_buffer.sample(20).actions.reshape(-1, *dims)
    np.testing.assert_allclose(actions, np.broadcast_to(np.array(noise), actions.shape), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 2), (3,), (1,)])
def test_noise_that_cannot_be_broadcast(shape):
    noise = NormalActionNoise(np.zeros(shape), np.ones(shape))
    if shape != (1,):
        with pytest.raises(InvalidArgumentError, match="`action_noise` must have the shape of one action"):
            make_model(env=toy_vec_env(2), action_noise=noise)
    if shape == (3,):
        with pytest.raises(InvalidArgumentError, match="`action_noise` must have the shape of one action"):
            make_model(action_noise=noise)


def test_a_predict_method_without_a_default():
    class Policy(MlpPolicy):
        def _predict(self, observation, deterministic):
            return super()._predict(observation, deterministic)

    assert make_model(Policy).learn(30).num_timesteps == 30


def test_an_actor_with_a_features_extractor_of_the_script():
    class Policy(MlpPolicy):
        def make_actor(self, features_extractor=None):
            return super().make_actor(features_extractor)

    assert make_model(Policy).learn(30).num_timesteps == 30


class Wide(nn.PReLU):
    def __init__(self):
        super().__init__(16)


def test_an_activation_for_the_width_of_the_layers():
    model = make_model(policy_kwargs={"net_arch": [16, 16], "activation_fn": Wide}).learn(30)
    assert sum(isinstance(module, Wide) for module in model.actor.modules()) == 2
    with pytest.raises(InvalidArgumentError, match="`activation_fn` must be a class of modules"):
        make_model(policy_kwargs={"net_arch": [16, 8], "activation_fn": Wide})


def test_torch_script_of_a_network():
    model = make_model()
    model.policy.set_training_mode(False)
    obs = th.randn(5, 3, generator=th.Generator().manual_seed(0))
    net = model.actor.mu
    assert th.allclose(th.jit.script(net)(obs), net(obs))


def test_steps_that_are_already_done():
    """``learn(total - model.num_timesteps)`` of a run that has reached its end."""
    model = make_model().learn(30)
    before = model.get_parameters()["policy"]
    assert model.learn(20 - model.num_timesteps, reset_num_timesteps=False).num_timesteps == 30
    assert all(th.equal(value, before[name]) for name, value in model.get_parameters()["policy"].items())
    with pytest.raises(InvalidArgumentError, match="`total_timesteps` must be a finite number"):
        model.learn(-np.inf, reset_num_timesteps=False)


def test_information_on_both_systems(tmp_path, capsys):
    make_model().save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", print_system_info=True)
    printed = capsys.readouterr().out
    assert printed.index("CURRENT SYSTEM INFO") < printed.index("SAVED MODEL SYSTEM INFO")
    assert printed.count("- PyTorch:") == 2

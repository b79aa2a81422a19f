"""Saving and loading models: all of their parts, changed arguments, and training afterwards."""

import dataclasses
import io
import pickle
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from toys import (
    CountingEnv,
    PointEnv,
    assert_same_arrays,
    counting_envs,
    recorded,
    same,
    small_model,
    weights,
    weights_of,
)

from ddpg_ext import (
    CheckpointError,
    DamagedCheckpointError,
    DDPGPaper,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    SnapshotCallback,
    UntrustedContentError,
    load_zoo_run,
)

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)


def one_update(model: DDPGPaper, buffer) -> None:
    """Five gradient steps on minibatches that depend on nothing but the buffer."""
    model.replay_buffer = buffer
    buffer.set_random_seed(7)
    model.train(gradient_steps=5, batch_size=8)


@pytest.fixture
def trained() -> DDPGPaper:
    return small_model(learning_rate=1e-3).learn(60)


@pytest.mark.parametrize("kind", [Path, "buffer", "buffer with a header"])
def test_a_loaded_model_is_the_saved_one(trained, tmp_path, kind):
    file = Path(tmp_path / "model") if kind is Path else io.BytesIO()  # SB3 adds the suffix
    if kind == "buffer with a header":
        file.write(b"header")
    trained.save(file)
    if kind is not Path:
        file.seek(0)
    else:
        assert (tmp_path / "model.zip").is_file()
    loaded = DDPGPaper.load(file, device="cpu")
    assert_same_arrays(weights_of(trained), weights_of(loaded))
    for name in ("num_timesteps", "_n_updates", "_episode_num", "batch_size", "learning_starts", "tau", "gamma"):
        assert getattr(trained, name) == getattr(loaded, name), name
    assert (loaded.num_timesteps, loaded._n_updates) == (60, 53)
    assert [info["r"] for info in trained.ep_info_buffer] == [info["r"] for info in loaded.ep_info_buffer]
    np.testing.assert_array_equal(trained.predict(OBSERVATIONS)[0], loaded.predict(OBSERVATIONS)[0])
    # The shortcuts are those of the loaded policy, not of one that was saved with them
    assert loaded.actor is loaded.policy.actor
    assert loaded.critic_target is loaded.policy.critic_target
    assert trained.actor is trained.policy.actor  # saving has changed nothing
    assert trained.replay_buffer.size() == 60


def test_schedules_come_back(tmp_path):
    """Each argument by itself: test_arguments.py."""
    model = small_model(learning_rate=ConstantSchedule(2e-3), qf_learning_rate=LinearSchedule(1e-3, 1e-4, 1.0)).learn(
        55
    )
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", PointEnv())
    for name in ("lr_schedule", "qf_lr_schedule"):
        rates = [[getattr(each, name)(remaining) for remaining in (1.0, 0.75, 0.0)] for each in (model, loaded)]
        assert rates[0] == rates[1]
    # What was loaded has no buffer, but counts on: as many updates again
    assert loaded.learn(55)._n_updates == 2 * model._n_updates


def test_sb3_opens_own_files(tmp_path):
    """SB3's own ``load``, with its unpickler, makes the same model of the file."""
    model = small_model().learn(20)
    model.save(tmp_path / "model.zip")
    loaded = OffPolicyAlgorithm.load.__func__(DDPGPaper, tmp_path / "model.zip")
    assert_same_arrays(weights_of(model), weights_of(loaded))


def test_training_goes_on_where_it_was(trained, tmp_path):
    """With the same buffer, saved and loaded model take the same next steps: nothing that matters was lost."""
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", PointEnv(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    for model in (trained, loaded):
        recorded(model)
        one_update(model, model.replay_buffer)
    assert_same_arrays(weights_of(trained), weights_of(loaded))


def test_wrong_arguments_on_loading(trained, tmp_path):
    trained.save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        DDPGPaper.load(tmp_path / "model", CountingEnv(), device="cpu")
    for kwargs, error in (
        ({"learning_rat": 1e-3}, InvalidArgumentTypeError),
        ({"tau": 2.0}, InvalidArgumentError),
        ({"policy_kwargs": {"net_arch": [7]}}, CheckpointError),
    ):
        with pytest.raises(error, match=next(iter(kwargs))):
            DDPGPaper.load(tmp_path / "model", device="cpu", **kwargs)


@pytest.mark.parametrize(("name", "large"), [("buffer_size", 100_000_001), ("stats_window_size", 1_000_001)])
def test_a_large_value_takes_trust_or_the_callers_word(tmp_path, name, large):
    model = small_model()
    setattr(model, "_stats_window_size" if name == "stats_window_size" else name, large)
    with pytest.warns(UserWarning, match=f"{name}` is {large}, .*need trusted=True"):
        model.save(tmp_path / "model")
    with pytest.raises(UntrustedContentError, match=f"{name}.*{large}"):
        DDPGPaper.load(tmp_path / "model", device="cpu")
    DDPGPaper.load(tmp_path / "model", device="cpu", **{name: 100})
    with pytest.raises(InvalidArgumentTypeError, match=f"`{name}` must be a whole number above 0, got 1.5"):
        DDPGPaper.load(tmp_path / "model", device="cpu", **{name: 1.5})
    DDPGPaper.load(tmp_path / "model", device="cpu", trusted=True)


def test_exclude_include_and_custom_objects(tmp_path, capsys):
    model = small_model(verbose=2, gamma=0.5).learn(20)
    model.save(tmp_path / "model", exclude=["verbose", "gamma"], include=["gamma"])
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu")
    assert loaded.verbose == 0
    assert loaded.gamma == 0.5
    custom = {"learning_rate": 2e-5, "action_noise": None, "dummy": 1.0}
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", custom_objects=custom, print_system_info=True)
    assert loaded.lr_schedule(1) == 2e-5
    assert loaded.action_noise is None
    assert not hasattr(loaded, "dummy")
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out


@pytest.mark.parametrize("cls", [DDPG, DDPGPaper])
def test_custom_objects_reach_fields_that_the_file_lacks(tmp_path, cls):
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    model = cls("MlpPolicy", PointEnv(), buffer_size=100, action_noise=noise, device="cpu")
    model.save(tmp_path / "model", exclude=["action_noise", "observation_space", "qf_weight_decay"])
    custom = {"action_noise": noise, "observation_space": model.observation_space, "qf_weight_decay": 0.5, "dummy": 1}
    loaded = DDPGPaper.load(tmp_path / "model", custom_objects=custom)
    assert loaded.action_noise is noise
    assert loaded.qf_weight_decay == loaded.critic.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert not hasattr(loaded, "dummy")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_policy_can_be_saved(trained, tmp_path):
    """torch.compile wraps the policy; what is saved is what is inside."""
    before = weights(trained.policy)
    trained.policy = th.compile(trained.policy)
    trained.save(tmp_path / "model")
    assert same(weights(DDPGPaper.load(tmp_path / "model", device="cpu").policy), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:executor 'fast':UserWarning")
@pytest.mark.parametrize("cls", [DDPG, DDPGPaper])
def test_compiled_networks_can_be_saved(tmp_path, cls):
    """In the file, tensors have the names of the compiled networks, which load and set_parameters translate."""
    kwargs = {"learning_starts": 10, "buffer_size": 100, "batch_size": 4, "policy_kwargs": {"net_arch": [8]}}
    model = cls("MlpPolicy", "Pendulum-v1", **kwargs, device="cpu", seed=0)
    model.policy.actor = model.actor = th.compile(model.actor, backend="eager")
    model.learn(20).save(tmp_path / "compiled")
    plain = DDPGPaper.load(tmp_path / "compiled", device="cpu")
    before = weights(model.actor)
    assert all(name.startswith("_orig_mod.") for name in before)
    assert same(weights(plain.actor), {name.removeprefix("_orig_mod."): value for name, value in before.items()})
    assert len(plain.actor.optimizer.state) == len(list(plain.actor.parameters()))
    if cls is DDPG:
        assert same(weights(DDPGPaper.from_sb3(model).actor), weights(plain.actor))
    if cls is DDPGPaper:
        for source in (tmp_path / "compiled", plain.get_parameters()):
            th.nn.init.zeros_(next(model.actor.parameters()))
            model.set_parameters(source, device="cpu")
            assert same(weights(model.actor), before)


def halved(remaining):
    return remaining * np.float64(0.5)


def sine(remaining):
    return remaining * np.sin(1.0)


def test_functions_survive_with_permission(tmp_path):
    """Functions as learning rates come back as such, and give plain floats even where NumPy computes them."""
    small_model(learning_rate=lambda p: halved(p), qf_learning_rate=sine).save(tmp_path / "model")
    with pytest.raises(UntrustedContentError, match=r"learning_rate.*custom_objects"):
        DDPGPaper.load(tmp_path / "model", allow=[sine])
    for way in ({"trusted": True}, {"allow": [sine], "custom_objects": {"learning_rate": halved}}):
        loaded = DDPGPaper.load(tmp_path / "model", device="cpu", **way)
        assert loaded.qf_learning_rate is sine
        for schedule, expected in ((loaded.lr_schedule, 0.25), (loaded.qf_lr_schedule, 0.5 * np.sin(1.0))):
            assert type(schedule(0.5)) is float
            assert schedule(0.5) == pytest.approx(expected)


def test_files_are_closed(tmp_path, recwarn):
    model = small_model().learn(10)
    model.save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", device="cpu")
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    with (tmp_path / "own").open("w+b") as file:
        model.save(file)
        file.seek(0)
        DDPGPaper.load(file, device="cpu")
        assert not file.closed
    assert [str(warning.message) for warning in recwarn if warning.category is ResourceWarning] == []


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_loading_on_a_device(trained, tmp_path, device):
    trained.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", PointEnv(), device=device)
    expected = "cuda" if device != "cpu" and th.cuda.is_available() else "cpu"
    assert loaded.device.type == loaded.policy.device.type == expected
    assert {param.device.type for param in loaded.policy.parameters()} == {expected}
    np.testing.assert_allclose(loaded.predict(OBSERVATIONS)[0], trained.predict(OBSERVATIONS)[0], rtol=1e-4, atol=1e-6)
    loaded.learn(20)
    assert loaded.replay_buffer.sample(2).observations.device.type == expected


def test_the_device_is_checked(trained, tmp_path):
    trained.save(tmp_path / "model")
    model = DDPGPaper.load(tmp_path / "model", device="cpu:0")
    model.set_parameters(tmp_path / "model", device="cpu:0")
    assert model.device == small_model(device="cpu:0").device == th.device("cpu")
    for device, error in ((None, InvalidArgumentTypeError), ("foo", InvalidArgumentError)):
        for use in (
            lambda device=device: small_model(device=device),
            lambda device=device: DDPGPaper.load(tmp_path / "model", device=device),
            lambda device=device: model.set_parameters(tmp_path / "model", device=device),
        ):
            with pytest.raises(error, match="`device` must be"):
                use()


def test_get_and_set_parameters(trained, tmp_path):
    """All of the parameters, or just some; what is unknown or missing is refused and nothing is changed by it."""
    original = deepcopy(trained.get_parameters())
    assert set(original) == {"policy", "actor.optimizer", "critic.optimizer"}
    trained.save(tmp_path / "model")
    given = deepcopy(original)
    for parameters in (given, tmp_path / "model"):
        other = small_model(seed=1, qf_weight_decay=0.0, qf_learning_rate=5e-3)
        assert not same(weights(other.policy), original["policy"])
        other.set_parameters(parameters, device="cpu")
        assert_same_arrays(weights_of(other), weights_of(trained))
        # Decay and rates are arguments of the model: another model's optimiser state does not bring its own along
        rates = [network.optimizer.param_groups[0]["lr"] for network in (other.actor, other.critic)]
        assert (rates, other.critic.optimizer.param_groups[0]["weight_decay"]) == ([1e-4, 5e-3], 0)
        # What one model learns afterwards does not reach the dict
        recorded(other)
        one_update(other, trained.replay_buffer)
        assert same(given["policy"], original["policy"])
        for index, state in original["critic.optimizer"]["state"].items():
            assert same(state, given["critic.optimizer"]["state"][index])

    for exact_match in (True, False):
        with pytest.raises(ValueError, match="nonsense"):
            trained.set_parameters({**original, "nonsense": {}}, exact_match=exact_match)
    with pytest.raises(ValueError, match="optimizer"):
        trained.set_parameters({"policy": original["policy"]}, exact_match=True)
    missing = "actor.mu.1.weight"
    incomplete = {name: th.ones_like(value) for name, value in original["policy"].items() if name != missing}
    with pytest.raises(InvalidArgumentError, match=missing):
        trained.set_parameters({**original, "policy": incomplete}, exact_match=True)
    trained.set_parameters({"policy": incomplete}, exact_match=False)
    for name, value in trained.policy.state_dict().items():
        expected = original["policy"][name] if name == missing else th.ones_like(value)
        assert th.equal(value, expected), name


@pytest.mark.parametrize("exact_match", [True, False])
def test_set_parameters_changes_all_or_nothing(trained, tmp_path, exact_match):
    model, other = small_model(seed=1), small_model(seed=2).learn(30)
    model.learn(20)
    before, given = deepcopy(weights_of(model)), other.get_parameters()
    wrong_shape = {**given["policy"], "critic.q_net.1.bias": th.zeros(3)}
    state = deepcopy(given["critic.optimizer"])
    state["state"][0]["exp_avg"] = th.zeros(3)
    for parameters in (
        {**given, "critic.optimizer": state},
        {**given, "critic.optimizer": None},
        {**given, "policy": wrong_shape},
        {**given, "critic.optimiser": {}},
        {**given, 5: {}},
    ):
        with pytest.raises(InvalidArgumentError, match="parameters"):
            model.set_parameters(parameters, exact_match)
        assert_same_arrays(weights_of(model), before)
    small_model(policy_kwargs={"net_arch": [8]}).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model.zip: the parameters do not fit the model"):
        model.set_parameters(tmp_path / "model", exact_match)
    assert_same_arrays(weights_of(model), before)
    for source in (None, 5, io.StringIO()):
        with pytest.raises(InvalidArgumentTypeError, match="`load_path_or_dict` must be"):
            model.set_parameters(source, exact_match)


def test_parameters_of_sb3s_files(tmp_path):
    kwargs = {"buffer_size": 200, "device": "cpu", "learning_starts": 5, "batch_size": 8, "seed": 0}
    original = DDPG("MlpPolicy", PointEnv(), policy_kwargs={"net_arch": [16, 16]}, **kwargs).learn(20)
    original.save(tmp_path / "sb3")
    like_sb3 = {"batch_norm": False, "action_layer": 1}
    model = small_model(policy_kwargs=like_sb3).learn(20)
    np.random.seed(3)
    expected = np.random.RandomState(3).random()
    model.set_parameters(tmp_path / "sb3")
    assert np.random.random() == expected
    assert_same_arrays(weights_of(model), weights_of(DDPGPaper.load(tmp_path / "sb3", device="cpu")))
    with pytest.raises(CheckpointError, match=r"sb3.zip: the parameters do not fit the model"):
        small_model().set_parameters(tmp_path / "sb3")
    SAC("MlpPolicy", PointEnv(), buffer_size=100).save(tmp_path / "sac")
    with pytest.raises(CheckpointError, match=r"sac.zip"):
        model.set_parameters(tmp_path / "sac")


def test_set_env(tmp_path):
    model = small_model(CountingEnv()).learn(10)
    model.set_env(CountingEnv(), force_reset=True)
    assert model._last_obs is None
    model.learn(25)
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(counting_envs(2))

    # The same environment, in the middle of an episode: step 5 of 10 goes on with step 6
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs[0].tolist()[2] == 5
    model.learn(1, reset_num_timesteps=False)
    assert (model.num_timesteps, model._last_obs[0].tolist()[2]) == (26, 6)

    env = model.get_env()
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env, device="cpu", force_reset=False)
    loaded.learn(1, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._last_obs[0].tolist()[2]) == (27, 7)

    loaded = DDPGPaper.load(tmp_path / "model", CountingEnv(), device="cpu", force_reset=True)
    assert loaded._last_obs is None
    loaded.learn(4, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._last_obs[0].tolist()[2]) == (30, 4)


class _Plain(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 2)

    def forward(self, observations):
        return observations


def _tenth(remaining):
    return 1e-4 * remaining


def test_classes_and_functions_of_a_script_are_allowed_by_name(tmp_path, monkeypatch):
    """Those of ``__main__`` are in the file as code, of which nothing is executed."""
    for item in (_Plain, _tenth):
        monkeypatch.setattr(item, "__module__", "__main__")
    model = small_model(learning_rate=_tenth, policy_kwargs=dict(net_arch=[8, 8], features_extractor_class=_Plain))
    model.save(tmp_path / "m")
    loaded = DDPGPaper.load(tmp_path / "m", allow=[_Plain, _tenth])
    assert loaded.learning_rate is _tenth
    assert loaded.policy_kwargs["features_extractor_class"] is _Plain
    for allow in ([_Plain], [_tenth], []):
        with pytest.raises(UntrustedContentError, match="allow="):
            DDPGPaper.load(tmp_path / "m", allow=allow)


class _Noise(NormalActionNoise):
    pass


@pytest.mark.parametrize("cls", [DDPG, DDPGPaper])
def test_instances_of_a_scripts_classes_survive(tmp_path, monkeypatch, cls):
    """A file, a checkpoint while training, a snapshot; SB3's files, too."""
    monkeypatch.setattr(_Noise, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "_Noise", _Noise, raising=False)  # as in a script
    noise = _Noise(np.zeros(2), 0.1 * np.ones(2))
    model = cls("MlpPolicy", PointEnv(), buffer_size=100, device="cpu", action_noise=noise)
    callbacks = [CheckpointCallback(10, str(tmp_path))]
    if cls is DDPGPaper:
        callbacks.append(SnapshotCallback(tmp_path / "s", every=20))
    model.learn(40, callback=callbacks)
    if cls is DDPGPaper:
        resumed = DDPGPaper.resume(tmp_path / "s", PointEnv(), allow=[_Noise])
        assert type(resumed.action_noise) is _Noise
    model.save(tmp_path / "m")
    for way in ({"allow": [_Noise]}, {"trusted": True}):
        assert type(DDPGPaper.load(tmp_path / "m", **way).action_noise) is _Noise
    with pytest.raises(UntrustedContentError, match="allow="):
        DDPGPaper.load(tmp_path / "m")


class _Counting(_Plain):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.calls = 0

    def forward(self, observations):
        self.calls += 1
        return observations

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_extra_state_of_a_module_survives(tmp_path):
    model = small_model(policy_kwargs={"features_extractor_class": _Counting})
    model.learn(60, callback=SnapshotCallback(tmp_path / "run", every=25))
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", allow=[_Counting])
    assert loaded.actor.features_extractor.calls == model.actor.features_extractor.calls > 0
    resumed = DDPGPaper.resume(tmp_path / "run", PointEnv(), allow=[_Counting])
    assert resumed.actor.features_extractor.calls > 0


OPTIMIZERS = [getattr(th.optim, name) for name in ("Adafactor", "Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam")]
OPTIMIZERS += [getattr(th.optim, name) for name in ("RAdam", "RMSprop", "Rprop", "SGD", "AdamW")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torchs_optimisers_survive(tmp_path, optimizer):
    kwargs = {"policy_kwargs": {"optimizer_class": optimizer}, "qf_weight_decay": 0}
    model = small_model(**kwargs).learn(15)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", PointEnv(), device="cpu")
    assert_same_arrays(weights_of(loaded), weights_of(model))
    loaded.learn(12)


def test_weights_of_torch_are_named_for_what_they_are(tmp_path):
    model, path = small_model(), tmp_path / "actor.pkl"
    th.save(model.actor.state_dict(), path)
    for load in (DDPGPaper.load, load_zoo_run, model.set_parameters):
        with pytest.raises(CheckpointError, match=r"not a model.*torch.save wrote it.*load_state_dict"):
            load(path)
    small_model().actor.load_state_dict(th.load(path))


OTHERS = (None, 5, b"x", "", io.StringIO())


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_what_is_no_path_is_refused_by_name(trained, value):
    uses = [trained.save, DDPGPaper.load, trained.save_replay_buffer, trained.load_replay_buffer, load_zoo_run]
    for use in [*uses, lambda path: DDPGPaper.resume(path, PointEnv())]:
        with pytest.raises(InvalidArgumentTypeError, match="`path` must be a path"):
            use(value)


@pytest.mark.parametrize("name", ["exclude", "include"])
@pytest.mark.parametrize("value", ["gamma", 5])
def test_names_of_attributes_are_a_list(trained, tmp_path, name, value):
    with pytest.raises(InvalidArgumentTypeError, match=f"`{name}` must be a list"):
        trained.save(tmp_path / "model", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("allow", 5), ("allow", None), ("allow", [5]), ("custom_objects", [1]), ("trusted", "no")]
)
def test_permissions_are_checked(trained, tmp_path, name, value):
    trained.save(tmp_path / "model")
    for load in (DDPGPaper.load, load_zoo_run):
        with pytest.raises(InvalidArgumentTypeError, match=f"`{name}` must"):
            load(tmp_path / "model.zip", **{name: value})


def test_one_class_may_be_allowed_without_a_list(tmp_path):
    small_model(policy_kwargs={"features_extractor_class": _Plain}).save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", allow=_Plain)


def test_a_path_that_ends_in_a_slash(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained.save("models/")
    trained.save_replay_buffer("buffers/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["buffers.pkl", "models.zip"]
    DDPGPaper.load("models/").load_replay_buffer("buffers/")


def test_a_name_of_the_greatest_length(trained, tmp_path):
    trained.save(tmp_path / ("ä" * 125 + ".zip"))
    DDPGPaper.load(tmp_path / ("ä" * 125))


@dataclasses.dataclass(slots=True)
class _Slots:
    value: int


class _Configured(FlattenExtractor):
    def __init__(self, observation_space, config):
        super().__init__(observation_space)
        self.config = config


def test_objects_with_slots_survive(tmp_path):
    kwargs = {"features_extractor_class": _Configured, "features_extractor_kwargs": {"config": _Slots(7)}}
    small_model(policy_kwargs=kwargs).save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", allow=[_Configured, _Slots])
    assert loaded.actor.features_extractor.config == _Slots(7)


def test_containers_that_contain_themselves_are_refused_by_name(trained, tmp_path):
    model = deepcopy(trained)
    model.history = []
    model.history.append(model.history)
    with pytest.raises(CheckpointError, match="`history` cannot be saved"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


class _OtherSignature(DDPGPaper):
    def __init__(self, env, width=8, **kwargs):
        super().__init__("MlpPolicy", env, policy_kwargs={"net_arch": [width]}, **kwargs)


def test_a_subclass_with_another_constructor_is_named(tmp_path):
    model = _OtherSignature(PointEnv())
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="_OtherSignature must have a constructor that begins with `policy`"):
        _OtherSignature.load(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model")


class _Point:
    __slots__ = ("x",)

    @property
    def y(self):
        return None

    @y.setter
    def y(self, value):
        raise AssertionError("a file must not call a setter")


@pytest.mark.parametrize("name", ["y", "__class__", "__init__"])
def test_a_file_sets_slots_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr(_Point, "__getstate__", lambda self: (None, {name: _Slots}), raising=False)
    kwargs = {"features_extractor_class": _Configured, "features_extractor_kwargs": {"config": _Point()}}
    small_model(policy_kwargs=kwargs).save(tmp_path / "model")
    with pytest.raises(UntrustedContentError, match=f"the attribute '{name}' of .*, which is not a slot"):
        DDPGPaper.load(tmp_path / "model", allow=[_Configured, _Point, _Slots])


def test_a_stop_in_a_saved_model(tmp_path):
    """`CheckpointCallback` saves between a step and its transition."""
    env = counting_envs(1)
    small_model(env).learn(15, callback=CheckpointCallback(15, tmp_path))
    model = DDPGPaper.load(tmp_path / "rl_model_15_steps", env=env, force_reset=False)
    model.learn(20, reset_num_timesteps=False)
    batch = model.replay_buffer.sample(500)
    assert th.equal(batch.observations[:, 2] + 1, batch.next_observations[:, 2])


class StopSoon(BaseCallback):
    def _on_step(self):
        return self.n_calls < 15


@pytest.mark.parametrize("steps", [sys.maxsize, 1e300])
def test_a_run_without_end_can_be_saved(tmp_path, steps):
    model = small_model().learn(steps, StopSoon())
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model").num_timesteps == 15


@pytest.mark.parametrize("name", ["policy_kwargs", "replay_buffer_kwargs"])
def test_arguments_that_may_be_none_when_loading(tmp_path, name):
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=100)
    model.save(tmp_path / "model")
    assert getattr(DDPGPaper.load(tmp_path / "model", **{name: None}), name) == {}


def test_the_placeholder_for_a_schedule_that_cannot_be_read(tmp_path):
    """SB3's recipe: 0.0 in place of a function in the file."""
    DDPG("MlpPolicy", "Pendulum-v1", learning_rate=lambda x: 1e-3 * x, buffer_size=100).save(tmp_path / "model")
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0}
    assert DDPGPaper.load(tmp_path / "model", custom_objects=custom).learning_rate == 1e-4


def test_the_callers_custom_objects_stay_as_they_are(tmp_path):
    model = small_model()
    model.save(tmp_path / "model")
    custom = {"policy_kwargs": {**model.policy_kwargs, "device": "cpu"}}
    DDPGPaper.load(tmp_path / "model", custom_objects=custom)
    assert custom["policy_kwargs"]["device"] == "cpu"


def test_a_file_that_holds_something_else(tmp_path):
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DamagedCheckpointError, match="it holds a dict, not a replay buffer"):
        small_model().load_replay_buffer(tmp_path / "buffer.pkl")

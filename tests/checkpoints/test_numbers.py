"""Arguments of all numeric types, of models of this package and of SB3's, are plain numbers and survive all files."""

import collections
import copy
import inspect
from contextlib import nullcontext
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from toy_envs import ToyGoalEnv
from toys import PointEnv, same, weights

from ddpg_ext import (
    CheckpointError,
    DDPGPaper,
    LinearDecay,
    OrnsteinUhlenbeckNoise,
    ScheduledActionNoise,
    SnapshotCallback,
    UntrustedContentError,
)
from ddpg_ext.buffers import PrioritizedReplayBuffer
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.common.checks import plain
from ddpg_ext.ddpg_paper import MlpPolicy

SMALL = {"policy_kwargs": {"net_arch": [5, 5]}, "batch_size": 4, "buffer_size": 90, "seed": 0, "device": "cpu"}

#: values of all numeric arguments of the constructor
WHOLE_ARGUMENTS = {
    **{"buffer_size": 90, "learning_starts": 5, "batch_size": 4, "train_freq": 2, "gradient_steps": 2, "n_steps": 2},
    **{"verbose": 0, "seed": 3, "stats_window_size": 7},
}
REAL_ARGUMENTS = {"learning_rate": 0.25, "tau": 0.5, "gamma": 0.75, "qf_learning_rate": 0.125, "qf_weight_decay": 0.5}
FLAGS = {"optimize_memory_usage": False, "uniform_warmup": True}
ALL_TYPES = {
    "plain": {**WHOLE_ARGUMENTS, **REAL_ARGUMENTS},
    "numpy": {
        **{name: np.int64(value) for name, value in WHOLE_ARGUMENTS.items()},
        **{name: np.float32(value) for name, value in REAL_ARGUMENTS.items()},
        **{name: np.bool_(value) for name, value in FLAGS.items()},
    },
    "short": {
        **{name: np.uint8(value) for name, value in WHOLE_ARGUMENTS.items()},
        **{name: np.longdouble(value) for name, value in REAL_ARGUMENTS.items()},
    },
    "0-d arrays": {name: np.array(value) for name, value in (WHOLE_ARGUMENTS | REAL_ARGUMENTS | FLAGS).items()},
    "tensors": {name: th.tensor(value) for name, value in (WHOLE_ARGUMENTS | REAL_ARGUMENTS | FLAGS).items()},
    # A whole number is also a number, and SB3 takes floats for some whole ones
    "whole reals": {
        **{"gamma": np.int64(1), "tau": np.int32(1), "learning_rate": np.int64(1), "qf_weight_decay": np.array(0)},
        **{"learning_starts": 1e1, "verbose": False, "executor": np.str_("eager")},
        "train_freq": (np.int64(2), np.str_("step")),
    },
    "fractions": {
        **{name: Fraction(value) for name, value in REAL_ARGUMENTS.items()},
        "train_freq": TrainFreq(2, "step"),
    },
    "real wholes": {
        **{"learning_starts": np.array(10.0), "verbose": np.bool_(False), "gradient_steps": np.int64(-1)},
        "train_freq": (np.array(1), "episode"),
    },
}
ATTRIBUTES = {"stats_window_size": "_stats_window_size", "executor": "_executor_choice"}


def run_through_all_files(folder, **kwargs):
    """Train with an argument, and return the models of all kinds of files."""
    model = DDPGPaper("MlpPolicy", PointEnv(), **{**SMALL, **kwargs})
    checkpoints = CheckpointCallback(40, str(folder / "checkpoints"), save_replay_buffer=True)
    model.learn(7e1, callback=[checkpoints, SnapshotCallback(folder / "snapshots", every=np.int64(20))])
    model.save(folder / "model")
    model.save_replay_buffer(folder / "buffer")
    loaded = DDPGPaper.load(folder / "model", PointEnv())
    loaded.load_replay_buffer(folder / "buffer")
    of_checkpoint = DDPGPaper.load(folder / "checkpoints" / "rl_model_40_steps")
    of_checkpoint.load_replay_buffer(folder / "checkpoints" / "rl_model_replay_buffer_40_steps")
    resumed = DDPGPaper.resume(folder / "snapshots", PointEnv())
    resumed.learn(np.int64(30), callback=SnapshotCallback(folder / "snapshots", every=20), reset_num_timesteps=False)
    return [model, loaded, of_checkpoint, resumed, DDPGPaper.load(snapshots(folder / "snapshots")[0])]


def is_plain(value):
    if isinstance(value, dict | list | tuple):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, np.generic | np.ndarray | th.Tensor)


def check_equal(models, names):
    """The arguments are plain numbers of equal value in all models."""
    for name in names:
        first, *others = (getattr(model, ATTRIBUTES.get(name, name)) for model in models)
        assert is_plain(first), (name, first)
        for other in others:
            assert (type(other), other) == (type(first), first), name


def test_the_numeric_arguments_are_all_here():
    parameters = inspect.signature(DDPGPaper).parameters
    numeric = {
        name
        for name, parameter in parameters.items()
        if any(kind in str(parameter.annotation) for kind in ("int", "float", "bool")) and not name.startswith("_")
    }
    assert numeric == {*WHOLE_ARGUMENTS, *REAL_ARGUMENTS, *FLAGS}


@pytest.mark.parametrize("kwargs", ALL_TYPES.values(), ids=ALL_TYPES)
def test_arguments_survive_all_files(tmp_path, kwargs):
    models = run_through_all_files(tmp_path, **kwargs)
    check_equal(models, kwargs)
    changes = {name: value for name, value in kwargs.items() if name not in ("n_steps", "gamma")}
    check_equal([DDPGPaper.load(tmp_path / "model", **changes), models[0]], changes)


def test_keyword_arguments_of_parts_survive_all_files(tmp_path):
    optimizer_kwargs = {"eps": Fraction(1, 8), "betas": (np.float32(0.5), np.array(0.75)), "amsgrad": np.bool_(True)}
    policy_kwargs = {
        **{"net_arch": {"pi": [np.int64(5), np.int32(4)], "qf": [np.array(5), 4]}},
        **{"final_init": np.float32(0.5), "action_layer": np.int64(1), "share_features_extractor": np.bool_(False)},
        **{"batch_norm": np.str_("critic"), "optimizer_kwargs": optimizer_kwargs},
    }
    buffer_kwargs = {
        **{"alpha": np.float32(0.5), "beta": np.array(0.5), "eps": np.float64(1e-5), "seed": np.int64(3)},
        **{"n_steps": np.int64(2), "handle_timeout_termination": np.bool_(True)},
    }
    kwargs = {"policy_kwargs": policy_kwargs, "replay_buffer_kwargs": buffer_kwargs}
    models = run_through_all_files(tmp_path, replay_buffer_class=PrioritizedReplayBuffer, **kwargs)
    check_equal(models, kwargs)
    assert policy_kwargs["optimizer_kwargs"]["betas"][1].shape == ()  # the caller's is unchanged
    for model in models:
        assert is_plain(
            [group[key] for group in model.critic.optimizer.param_groups for key in group if key != "params"]
        )
        assert is_plain([value for name, value in vars(model.replay_buffer).items() if name in buffer_kwargs])


NOISES = [
    lambda: OrnsteinUhlenbeckNoise(
        np.zeros(2, np.float16), np.float32(0.1), np.float32(0.25), np.array(0.5), [np.int64(1)] * 2, np.int64(3)
    ),
    lambda: ScheduledActionNoise(
        OrnsteinUhlenbeckNoise([np.array(0), 0], sigma=th.tensor(0.1), seed=np.array(3)),
        LinearDecay(1e3, np.array(0.5)),
    ),
    lambda: ScheduledActionNoise(NormalActionNoise([0.0, 0], [np.float32(0.1), 0.1]), LinearDecay(np.float64(10.5))),
    lambda: OrnsteinUhlenbeckActionNoise(np.zeros(2), np.float32(0.1), np.array(0.25), np.float32(0.5)),
    lambda: NormalActionNoise(range(2), th.tensor([0.1, 0.2]), dtype="float64"),
    lambda: ScheduledActionNoise(
        OrnsteinUhlenbeckActionNoise(th.zeros(2), th.tensor(0.1), th.tensor(0.5), initial_noise=th.ones(2)),
        LinearDecay(th.tensor(100)),
    ),
    lambda: VectorizedActionNoise(NormalActionNoise(th.zeros(2), th.ones(2)), 1),
]


ZEROS, ONES = np.zeros(2), np.ones(2)
PARAMETERS = [
    *((ZEROS, sigma) for sigma in (Fraction(1, 10), Decimal("0.1"), True, np.True_, [True, np.float16(2)], (1, 2))),
    *((np.ma.array(ZEROS), ONES), (ZEROS.view(np.recarray), ONES), (ZEROS.astype(">f8"), ONES)),
    *((ZEROS, ONES, dtype) for dtype in (np.bool_, "float16", ">f4", float)),
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_parameters_of_sb3s_noise_that_numpy_takes_can_be_loaded(tmp_path, parameters):
    np.random.seed(0)
    expected = NormalActionNoise(*parameters)()
    model = DDPGPaper("MlpPolicy", PointEnv(), action_noise=NormalActionNoise(*parameters), **SMALL)
    model.save(tmp_path / "model")
    np.random.seed(0)
    assert np.array_equal(DDPGPaper.load(tmp_path / "model").action_noise(), expected)


@pytest.mark.parametrize("make_noise", NOISES, ids=map(str, range(len(NOISES))))
def test_noises_and_schedules_survive_all_files(tmp_path, make_noise):
    schedule = LinearSchedule(np.float32(1e-3), np.array(0.0), np.float64(1))
    run_through_all_files(tmp_path, action_noise=make_noise(), learning_rate=schedule, qf_learning_rate=schedule)


def test_tensors_in_a_noise_change_no_draw():
    noises = [NormalActionNoise(of([0.0, 1]), of([0.1, 0.2])) for of in (np.array, lambda v: th.tensor(v).double())]
    models = [DDPGPaper("MlpPolicy", PointEnv(), action_noise=noise, **SMALL).learn(20) for noise in noises]
    assert models[1].action_noise is noises[1]
    actions = [model.replay_buffer.sample(1000).actions.sum() for model in models]
    assert actions[0] == actions[1]


class Described(FlattenExtractor):
    def __init__(self, observation_space, value):
        super().__init__(observation_space)
        self.value = value


VALUES = [
    *(1j, np.complex64(1j), slice(0, 3), slice(None, None, -1), collections.Counter("ab")),
    *(collections.defaultdict(int, a=1), collections.defaultdict(None, a=[1]), collections.defaultdict(list)),
    *(th.device("cpu"), th.device("cuda", 0), th.float32, th.bool, th.Size([2, 3]), float, str, list, dict),
    *(th.ones(2), th.tensor([[True]]), th.arange(6).reshape(2, 3).t(), th.zeros(0), th.ones(1, requires_grad=True)),
    *({"nested": [(th.ones(1), th.float64)]}, np.datetime64("2020-01-01").astype("i8")),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_that_an_extractor_takes_survive_a_file(tmp_path, value):
    extractor = {"features_extractor_class": Described, "features_extractor_kwargs": {"value": value}}
    model = DDPGPaper("MlpPolicy", PointEnv(), **{**SMALL, "policy_kwargs": {"net_arch": [5, 5], **extractor}})
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", allow=[Described]).actor.features_extractor.value
    sb3s = load_from_zip_file(tmp_path / "model")[0]["policy_kwargs"]["features_extractor_kwargs"]["value"]
    for read in (loaded, sb3s):
        assert repr(read) == repr(plain(value)).replace(", requires_grad=True", "")


def test_attributes_of_a_subclass_survive_a_file(tmp_path):
    class Noted(DDPGPaper):
        pass

    model = Noted("MlpPolicy", PointEnv(), **SMALL)
    model.span, model.weights = range(2, 9), th.ones(3)
    model.save(tmp_path / "model")
    assert Noted.load(tmp_path / "model").span == range(2, 9)
    assert th.equal(Noted.load(tmp_path / "model").weights, th.ones(3))


WIDTHS = [(5, 4), range(4, 6), np.array([5, 4]), th.tensor([5, 4]), (np.int64(5), np.array(4)), ()]
WIDTHS += [{"pi": (5,), "qf": range(4, 6)}, {"pi": [5], "qf": np.array([4, 5]), "vf": [3]}]


@pytest.mark.parametrize("net_arch", WIDTHS, ids=repr)
def test_widths_survive_a_file(tmp_path, net_arch):
    kwargs = {**SMALL, "policy_kwargs": {"net_arch": net_arch}}
    model = DDPGPaper("MlpPolicy", PointEnv(), **kwargs)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", policy_kwargs={"net_arch": net_arch})
    check_equal([model, loaded], ["policy_kwargs"])
    widths = net_arch["pi"] if isinstance(net_arch, dict) else net_arch
    assert [layer.out_features for layer in loaded.actor.mu if isinstance(layer, nn.Linear)][:-1] == [*map(int, widths)]


def test_optimiser_arguments_that_the_user_sets_later(tmp_path):
    model = DDPGPaper("MlpPolicy", PointEnv(), **SMALL)
    model.actor.optimizer.param_groups[0]["eps"] = np.float64(1e-6)
    model.qf_weight_decay = np.array(0.5)
    model.learn(20)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model")
    assert loaded.actor.optimizer.param_groups[0]["eps"] == 1e-6
    assert type(loaded.qf_weight_decay) is float


def test_vec_normalize_of_numpy_numbers(tmp_path):
    def env():
        numbers = {"clip_obs": np.int64(5), "clip_reward": np.float32(5), "gamma": np.array(0.5)}
        return VecNormalize(DummyVecEnv([PointEnv]), norm_reward=np.bool_(True), epsilon=np.float32(1e-4), **numbers)

    DDPGPaper("MlpPolicy", env(), **SMALL).learn(60, callback=SnapshotCallback(tmp_path, every=20))
    assert DDPGPaper.resume(tmp_path, env()).env.clip_obs == 5
    assert DDPGPaper.resume(tmp_path, DummyVecEnv([PointEnv])).env.gamma == 0.5


@pytest.mark.parametrize("value", [1, 1.5, True, "text", None, np.ones(1), [np.ones(2)], th.ones(1)])
def test_other_values_are_left_as_they_are(value):
    assert plain(value) is value or plain(value)[0] is value[0]


SEQUENCES = [
    lambda seed: np.random.default_rng(np.int64(seed)),
    lambda seed: np.random.default_rng(np.array([seed, 2], np.uint8)),
    lambda seed: np.random.default_rng([np.int32(seed), 2]),
    lambda seed: np.random.default_rng(np.random.SeedSequence(np.uint64(seed), spawn_key=(np.int64(3),))),
    lambda seed: np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1]).spawn(2)[1],
    lambda seed: np.random.Generator(np.random.MT19937(np.int64(seed))),
    lambda seed: np.random.Generator(np.random.Philox(key=np.int64(seed))),
    lambda seed: np.random.Generator(np.random.SFC64(np.int64(seed))),
    lambda seed: np.random.Generator(np.random.PCG64DXSM(np.int64(seed)).jumped(np.int64(2))),
    lambda seed: np.random.RandomState(np.int64(seed)),
]


class Windy(PointEnv):
    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        seed = self.np_random.integers(2**31, dtype=np.int64)
        self.winds = [make_generator(seed) for make_generator in SEQUENCES]
        return observation, info

    def step(self, action):
        return super().step(action + np.float32(0.01) * sum(wind.normal(size=2) for wind in self.winds))


def test_generators_of_environments(tmp_path):
    callback = SnapshotCallback(tmp_path / "whole", every=20, keep=9)
    whole = DDPGPaper("MlpPolicy", Windy(), **SMALL).learn(60, callback=callback)
    resumed = DDPGPaper.resume(snapshots(tmp_path / "whole")[1], Windy())
    resumed.learn(60 - resumed.num_timesteps, reset_num_timesteps=False)
    assert same(weights(whole.policy), weights(resumed.policy))


class Goal(ToyGoalEnv):
    def step(self, action):
        numbers = {"i": np.int64(3), "f": np.float32(0.5), "flag": np.bool_(True), "array": np.ones(3)}
        info = {"is_success": np.bool_(True), "nested": [numbers] * 2, "text": "x", "none": None}
        return *super().step(action)[:4], info

    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.array([float(one["nested"][0]["f"]) for one in info]) if len(info) else np.float32(0)


def test_infos_of_her(tmp_path):
    kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
    kwargs["replay_buffer_kwargs"] |= {"n_sampled_goal": np.int64(2)}
    model = DDPGPaper("MultiInputPolicy", Goal(), **{**SMALL, **kwargs})
    model.learn(60, callback=SnapshotCallback(tmp_path, every=40))
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", Goal())
    loaded.load_replay_buffer(tmp_path / "buffer")
    resumed = DDPGPaper.resume(tmp_path, Goal())
    for other in (loaded, resumed):
        assert other.replay_buffer.infos[3, 0]["nested"][1]["i"] == 3
        other.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("entry", [{1.5: 2}, {(1, 2): 3}, {"object": object()}])
def test_infos_of_her_that_no_file_holds(tmp_path, entry):
    class Odd(ToyGoalEnv):
        def step(self, action):
            *result, info = super().step(action)
            return *result, {**info, **entry}

    kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
    model = DDPGPaper("MultiInputPolicy", Odd(), **{**SMALL, **kwargs})
    with pytest.raises(CheckpointError, match=r"leave that entry out of the environment's info.*copy_info_dict=False"):
        model.learn(60, callback=SnapshotCallback(tmp_path, every=20))


OwnExtractor = type("OwnExtractor", (FlattenExtractor,), {})
OwnActivation = type("OwnActivation", (nn.Tanh,), {})
OwnOptimizer = type("OwnOptimizer", (th.optim.Adam,), {})
OwnPolicy = type("OwnPolicy", (MlpPolicy,), {})


class OwnNoise(ActionNoise):
    def __init__(self):
        self.sigma = np.float32(0.1)

    def __call__(self):
        return np.full(2, self.sigma)


class OwnSchedule:
    def __call__(self, progress_remaining):
        return np.float32(1e-3)


class Label:
    text = "a"


class OwnBuffer(ReplayBuffer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.label, self.count = Label(), np.int64(3)


CLASSES = [OwnExtractor, OwnActivation, OwnOptimizer, OwnPolicy, OwnNoise, OwnSchedule, Label, OwnBuffer]


def test_own_classes_open_with_trusted_and_with_allow(tmp_path):
    policy_kwargs = {"features_extractor_class": OwnExtractor, "activation_fn": OwnActivation}
    policy_kwargs |= {"net_arch": [5, 5], "optimizer_class": OwnOptimizer}
    kwargs = {"action_noise": OwnNoise(), "learning_rate": OwnSchedule(), "replay_buffer_class": OwnBuffer}
    model = DDPGPaper(OwnPolicy, PointEnv(), **{**SMALL, **kwargs, "policy_kwargs": policy_kwargs})
    model.learn(60, callback=SnapshotCallback(tmp_path / "snapshots", every=20))
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    for way in ({"trusted": True}, {"allow": CLASSES}):
        DDPGPaper.load(tmp_path / "model", **way).load_replay_buffer(tmp_path / "buffer", **way)
        DDPGPaper.resume(tmp_path / "snapshots", PointEnv(), **way).learn(30, reset_num_timesteps=False)
    for missing in CLASSES:
        allow = [cls for cls in CLASSES if cls is not missing]
        with pytest.raises(UntrustedContentError, match=rf"{missing.__name__}.*allow=\[.*trusted=True"):
            DDPGPaper.resume(tmp_path / "snapshots", PointEnv(), allow=allow)
        if missing is not Label:  # which only the buffer has
            with pytest.raises(UntrustedContentError, match=rf"{missing.__name__}.*allow=\[.*trusted=True"):
                DDPGPaper.load(tmp_path / "model", allow=allow)


class Mine(DDPGPaper):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class Yours(Mine):
    def __init__(self, policy, env, **kwargs):
        super().__init__(policy, env, **kwargs)


@pytest.mark.parametrize("cls", [Mine, Yours])
def test_subclasses_with_keyword_arguments_load_with_changes(tmp_path, cls):
    cls("MlpPolicy", PointEnv(), extra=np.int64(5), **SMALL).save(tmp_path / "model")
    model = cls.load(tmp_path / "model", verbose=np.int64(0), gamma=np.float32(0.5), stats_window_size=3)
    assert (model.extra, model.gamma, model._stats_window_size) == (5, 0.5, 3)
    assert cls.load(tmp_path / "model", extra=7).extra == 7
    for wrong in ("kwargs", "args", "env_id", "policy"):
        with pytest.raises(TypeError, match=f"keyword '{wrong}'"):
            cls.load(tmp_path / "model", **{wrong: 3})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"learning_starts": 1e1, "verbose": False},
        {"learning_starts": 10.5},
        {"learning_starts": np.float32(10), "verbose": np.int64(0), "buffer_size": np.int64(60)},
        {"batch_size": np.int64(8), "tau": np.float32(0.5), "gamma": np.array(0.5), "learning_rate": np.float64(1e-3)},
        {"n_steps": np.int64(2), "gamma": np.float32(0.5), "gradient_steps": np.int64(2)},
        {"policy_kwargs": {"net_arch": [np.int64(5)] * 2, "optimizer_kwargs": {"eps": np.float64(1e-5)}}},
        {"action_noise": NormalActionNoise([0.0, 0.0], np.float32(0.1))},
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["zip", "live"])
def test_numbers_of_sb3_models(tmp_path, kwargs, how):
    theirs = DDPG("MlpPolicy", PointEnv(), **copy.deepcopy({**SMALL, "learning_starts": 10, **kwargs}))
    theirs.learn(5e1 + 0.5)
    theirs.save_replay_buffer(tmp_path / "buffer")
    if how == "zip":
        if "policy_kwargs" in kwargs:  # its optimiser has NumPy's number
            return
        theirs.save(tmp_path / "model")
        ours = DDPGPaper.load(tmp_path / "model", PointEnv())
    else:
        ours = DDPGPaper.from_sb3(theirs)
    ours.load_replay_buffer(tmp_path / "buffer")
    check_equal([ours], [*WHOLE_ARGUMENTS, "tau", "gamma", "learning_rate"])
    assert type(ours.learning_starts) is int
    ours.learn(30, callback=SnapshotCallback(tmp_path, every=20), reset_num_timesteps=False)
    ours.save(tmp_path / "ours")
    DDPGPaper.load(tmp_path / "ours").load_replay_buffer(tmp_path / "buffer")
    DDPGPaper.resume(tmp_path, PointEnv())


REFUSED = {"tau": (0, 0.5), "gamma": (1.5, 0.5), "learning_rate": (0.0, 0.5)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_sb3_takes_is_named_with_the_cure(tmp_path, name):
    value, accepted = REFUSED[name]
    theirs = DDPG("MlpPolicy", PointEnv(), **{name: value}, **copy.deepcopy(SMALL))
    theirs.save(tmp_path / "model")
    cure = rf"`{name}` must .* got {value}; custom_objects={{'{name}': ...}}"
    with pytest.raises(CheckpointError, match=cure) as told:
        DDPGPaper.load(tmp_path / "model")
    assert type(told.value) is CheckpointError  # nothing is damaged
    assert getattr(DDPGPaper.load(tmp_path / "model", custom_objects={name: accepted}), name) == accepted
    with pytest.raises(CheckpointError, match=rf"got {value}; set the SB3 model's `{name}`"):
        DDPGPaper.from_sb3(theirs)
    setattr(theirs, name, accepted)
    assert getattr(DDPGPaper.from_sb3(theirs), name) == accepted


def test_a_part_that_sb3_takes_is_named_with_the_cure():
    theirs = DDPG("MlpPolicy", PointEnv(), policy_kwargs={"activation_fn": lambda: nn.ReLU()}, buffer_size=9)
    with pytest.raises(CheckpointError, match=r"`activation_fn` must .*; set the SB3 model's `policy_kwargs`"):
        DDPGPaper.from_sb3(theirs)


SB3_ONLY = [
    ({"learning_starts": -5}, {"learning_starts": 0}),
    ({"gradient_steps": -7}, {"gradient_steps": -1}),
    ({"policy_kwargs": {"net_arch": (5, 4), "normalize_images": 1}}, {}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_kwargs": {"weight_decay": 0.25}}}, {"qf_weight_decay": 0.25}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_class": th.optim.AdamW}}, {"qf_weight_decay": 0.01}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_class": th.optim.Rprop}}, {"qf_weight_decay": 0.0}),
]


@pytest.mark.parametrize(("kwargs", "expected"), SB3_ONLY, ids=str)
@pytest.mark.parametrize("how", ["zip", "live"])
def test_arguments_that_only_sb3_takes(tmp_path, kwargs, expected, how):
    if isinstance(kwargs.get("policy_kwargs", {}).get("net_arch"), tuple):
        kwargs = {"policy_kwargs": {**kwargs["policy_kwargs"], "net_arch": {"pi": (5, 4), "qf": (5, 4)}}}
    theirs = DDPG("MlpPolicy", PointEnv(), **copy.deepcopy({**SMALL, "learning_starts": 10, **kwargs})).learn(30)
    theirs.save(tmp_path / "theirs")
    ours = DDPGPaper.from_sb3(theirs) if how == "live" else DDPGPaper.load(tmp_path / "theirs", PointEnv())
    assert {name: getattr(ours, name) for name in expected} == expected
    observations = PointEnv().observation_space.sample()
    np.testing.assert_allclose(ours.predict(observations)[0], theirs.predict(observations)[0], atol=1e-6)
    ours.save(tmp_path / "ours")
    loaded = DDPGPaper.load(tmp_path / "ours", PointEnv())
    decays = [
        [getattr(model, name).optimizer.param_groups[0].get("weight_decay", 0.0) for name in ("actor", "critic")]
        for model in (ours, loaded)
    ]
    assert decays == [[0.0, expected.get("qf_weight_decay", 0.0)]] * 2
    for model in (ours, loaded):
        with pytest.warns(match="without the weight decay of its actor") if any(decays[0]) else nullcontext():
            model.learn(20)

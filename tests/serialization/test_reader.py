"""The allow-list reader: values on the list come back equal, and nothing else comes back."""

import collections
import contextlib
import os
import pickle
import pickletools
import random
from unittest import mock

import cloudpickle
import hostile
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from ddpg_ext import CheckpointError, LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise, UntrustedContentError
from ddpg_ext.common.noise import vectorize
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.reconstruct import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def ou_noise():
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), seed=3)
    noise()
    return noise


def rms():
    statistics = RunningMeanStd(shape=(3,))
    statistics.update(np.random.default_rng(0).normal(size=(20, 3)))
    return statistics


class OwnSchedule:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, progress):
        return self.rate * progress


def own_function(progress):
    return progress / 2


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


VALUES = {
    "plain": {"a": [1, 2.5, None, True, "x"], "b": (1, (2,)), 3: b"bytes"},
    "negative and large": [-1, 2**31, -(2**40), 2**100, 1e300, float("inf")],
    "set": {1, 2, 3},
    "frozenset": frozenset(["a"]),
    "bytearray": bytearray(b"abc"),
    "deque": collections.deque([{"r": np.float64(1.5), "l": 3, "t": 0.25}], maxlen=100),
    "ordered dict": collections.OrderedDict(b=1, a=2),
    "array": np.arange(12.0).reshape(3, 4),
    "float32 array": np.ones((2, 2), np.float32),
    "Fortran array": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big-endian array": np.arange(5, dtype=">i4"),
    "permuted array": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided array": np.arange(20)[::3],
    "bool array": np.array([True, False]),
    "empty array": np.zeros((0, 3), np.float32),
    "0-d array": np.array(3.0),
    "text array": np.array(["ab", "c"]),
    "numpy number": np.float32(1.25),
    "dtype": np.dtype("float32"),
    "box": spaces.Box(-np.ones(3), np.ones(3), dtype=np.float64),
    "images": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "unbounded box": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "discrete": spaces.Discrete(4, start=2),
    "small discrete": spaces.Discrete(4, start=-2, dtype=np.int16),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "small multi-discrete": spaces.MultiDiscrete([2, 3], np.uint8, start=[1, 0]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary([2, 3]),
    "dict space": spaces.Dict(b=spaces.Box(-1, 1, (2,)), a=spaces.Dict(c=spaces.Discrete(2))),
    "tuple space": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)]),
    "train_freq": TrainFreq(3, TrainFrequencyUnit.EPISODE),
    "goal strategy": GoalSelectionStrategy.FUTURE,
    "linear decay": LinearDecay(100, 1.0, 0.1),
    **{cls.__name__: cls for cls in (th.nn.ReLU, th.optim.Adam, th.optim.Muon, FlattenExtractor)},
    "complex": 1 - 2.5j,
    "range": range(3, 9, 2),
    "slice": slice(None, 5),
    "counter": collections.Counter("abba"),
    "default dict": collections.defaultdict(list, a=[1]),
    "device": th.device("cuda", 1),
    "dtype of torch": th.float64,
    "size": th.Size([2, 3]),
}


def normal_noise():
    return NormalActionNoise(np.zeros(2), np.ones(2))


def five(noise):
    np.random.seed(0)  # of SB3's noises
    return np.array([noise() for _ in range(5)])


#: objects, and what they do
BEHAVE = {
    "generator": (lambda: np.random.default_rng(5), lambda g: g.normal(size=4)),
    "philox": (lambda: np.random.Generator(np.random.Philox(5)), lambda g: g.normal(size=4)),
    "random state of gym's spaces": (lambda: np.random.RandomState(3), lambda r: r.normal(size=3)),
    "normal noise": (normal_noise, five),
    "SB3's OU noise": (lambda: OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)), five),
    "SB3's vectorised noise": (lambda: VectorizedActionNoise(normal_noise(), 3), five),
    "OU noise": (ou_noise, five),
    "scheduled noise": (lambda: ScheduledActionNoise(ou_noise(), LinearDecay(3)), five),
    "vectorised OU noise": (lambda: vectorize(ou_noise(), 3), five),
    "spawned noise": (ou_noise, lambda n: np.array([copy() for copy in n.spawn(2)])),
    "constant schedule": (lambda: FloatSchedule(0.5), lambda s: s(0.3)),
    "linear schedule": (lambda: FloatSchedule(LinearSchedule(1.0, 0.0, 0.5)), lambda s: [s(0.9), s(0.2)]),
    "statistics": (rms, lambda r: np.concatenate([r.mean, r.var, [r.count]])),
}


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) and b.flags.writeable
    return a == b


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VALUES)
def test_pickles_come_back(name, protocol):
    value = VALUES[name]
    assert same(value, load_pickle(pickle.dumps(value, protocol)))
    if protocol == PROTOCOLS[-1]:
        assert same(value, load_pickle(cloudpickle.dumps(value)))


def test_a_dict_space_keeps_the_order_of_its_keys():
    """A features extractor concatenates in this order."""
    space = spaces.Dict(collections.OrderedDict(z=spaces.Discrete(2, dtype=np.int8), a=spaces.Discrete(3)))
    copy = load_pickle(pickle.dumps(space))
    assert copy == space
    assert list(copy) == ["z", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BEHAVE)
def test_pickled_objects_behave(name, protocol):
    make, use = BEHAVE[name]
    assert np.array_equal(use(make()), use(load_pickle(pickle.dumps(make(), protocol))))


def test_object_arrays_of_plain_values():
    infos = np.array([[{"a": 1}, {}], [{}, {"b": "x"}]], dtype=object)
    assert (load_pickle(pickle.dumps(infos)) == infos).all()


def test_functions_that_the_zoo_stores():
    """``constant_fn`` and ``linear_schedule`` are recognised by their code, which is not run."""
    scope = {"__name__": "__main__"}
    exec(
        "def constant_fn(val):\n    def func(_):\n        return val\n    return func\n"
        "def linear_schedule(initial_value):\n    def func(progress_remaining):\n"
        "        return progress_remaining * initial_value\n    return func\n",
        scope,
    )
    constant, linear = scope["constant_fn"](0.5), scope["linear_schedule"](0.5)
    assert isinstance(load_pickle(cloudpickle.dumps(constant)), ConstantSchedule)
    for progress in (1.0, 0.7, 0.0):
        assert load_pickle(cloudpickle.dumps(constant))(progress) == 0.5
        assert load_pickle(cloudpickle.dumps(linear))(progress) == pytest.approx(linear(progress), abs=1e-12)


@pytest.mark.parametrize("function", [lambda p: p, lambda p, q=1: q, lambda: 3])
def test_other_functions_are_refused(function):
    with pytest.raises(UntrustedContentError, match="function"):
        load_pickle(cloudpickle.dumps(function))


@pytest.mark.parametrize(
    "value",
    [
        range(10**9),
        collections.defaultdict(print),
        collections.defaultdict(th.nn.ReLU),
        cloudpickle.loads,
        Reduced(th.device, "no such device"),
        Reduced(th.Size, (-1,)),
        Reduced(th.utils.dlpack.from_dlpack, 3),
    ],
    ids=map(str, range(7)),
)
def test_values_beyond_the_list_are_refused(value):
    with pytest.raises(CheckpointError):
        load_pickle(pickle.dumps(value))


def test_own_classes_take_permission():
    value = {"schedule": OwnSchedule(0.5), "class": OwnSchedule, "function": own_function}
    data = pickle.dumps(value)
    with pytest.raises(UntrustedContentError, match=r"own_function|OwnSchedule"):
        load_pickle(data)
    back = load_pickle(data, Allowed([OwnSchedule, own_function]))
    assert (back["schedule"](0.5), back["class"], back["function"]) == (0.25, OwnSchedule, own_function)


def test_what_comes_back_shares_no_memory_with_the_file():
    data = bytearray(pickle.dumps(np.zeros(4), 5))
    array = load_pickle(bytes(data))
    array[:] = 7
    assert (pickle.loads(bytes(data)) == 0).all()


class EmptyArray:
    """Pickled as an empty array, but with this shape and dtype."""

    def __init__(self, shape, dtype):
        self.reduced = np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype(dtype), False, b"")

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("shape", "dtype"), [((0, 10**200), "f4"), ((0, 2**40, 2**40), "f4"), ((3,), "U0"), ((3,), "S0")]
)
def test_arrays_of_impossible_shape_or_type(shape, dtype):
    with pytest.raises(CheckpointError):
        load_pickle(pickle.dumps(EmptyArray(shape, dtype), protocol=2))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(-(2**40), 2**40), inner, max_size=4)
    ),
    max_leaves=15,
)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
)


@settings(max_examples=150, deadline=None)
@given(value=plain | arrays, protocol=st.integers(0, 5))
def test_any_plain_value_comes_back(value, protocol):
    np.testing.assert_equal(load_pickle(pickle.dumps(value, protocol)), value)


OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
SEEDS = [pickle.dumps(value, protocol) for value in VALUES.values() for protocol in (0, 2, 4, 5)]
SEEDS += [pickle.dumps(make(), 4) for make, _ in BEHAVE.values()]


@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_pickles_are_read_or_refused(data):
    """Good pickles with bytes changed, instructions put in, and parts of other pickles: no other outcome."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    pickled = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(pickled) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(pickled):
            pickled[at] = rng.randrange(256)
        elif kind == 1:
            pickled[at:at] = rng.choice(OPCODES)
        elif kind == 2:
            del pickled[at : at + rng.randint(1, 8)]
        elif kind == 3:
            other = rng.choice(SEEDS)
            start = rng.randrange(len(other))
            pickled[at:at] = other[start : start + rng.randint(1, 30)]
        else:
            pickled[at:at] = hostile.call("os:system", hostile.text("exit 1"))
    executed = mock.patch.object(os, "system", side_effect=AssertionError("the pickle was executed"))
    with executed, contextlib.suppress(CheckpointError):
        load_pickle(bytes(pickled))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(CheckpointError):
        load_pickle(data)

"""Classes and functions of a script, which files hold as code: ``allow=`` takes them, their methods and enums."""

import copy
import enum
import sys

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from toys import PointEnv

from ddpg_ext import CheckpointError, DamagedCheckpointError, DDPGPaper, SnapshotCallback, UntrustedContentError
from ddpg_ext.common.errors import InvalidArgumentTypeError


class Described(FlattenExtractor):
    def __init__(self, observation_space, value=None):
        super().__init__(observation_space)
        self.value = value


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Option(enum.IntFlag):
    A = 1
    B = 2


class Rates:
    rate = 0.25

    @staticmethod
    def static(progress_remaining):
        return 0.25

    @classmethod
    def of_class(cls, progress_remaining):
        return cls.rate

    def of_instance(self, progress_remaining):
        return self.rate

    def _private(self, progress_remaining):
        return self.rate

    class Inner:
        def __call__(self, progress_remaining):
            return 0.25

        def of_instance(self, progress_remaining):
            return 0.25


@pytest.fixture(params=["by value", "by name"])
def save(request, tmp_path):
    """Save a model: with the code of this module, as that of a script, or with names."""

    def save(**kwargs):
        kwargs.setdefault("policy_kwargs", {"net_arch": [4]})
        DDPGPaper("MlpPolicy", PointEnv(), buffer_size=20, device="cpu", **kwargs).save(tmp_path / "model")
        return tmp_path / "model"

    if request.param == "by name":
        yield save
        return
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield save
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("value", [Color.RED, Color, [Color.BLUE, Color.RED], Option.A | Option.B], ids=str)
def test_enums(save, value):
    extractor = {"features_extractor_class": Described, "features_extractor_kwargs": {"value": value}}
    file = save(policy_kwargs={"net_arch": [4], **extractor})
    with pytest.raises(UntrustedContentError, match="allow="):
        DDPGPaper.load(file, allow=[Described])
    assert DDPGPaper.load(file, allow=[Described, Color, Option]).actor.features_extractor.value == value


METHODS = {
    "static": (Rates.static, [[Rates], [Rates.static]]),
    "class": (Rates.of_class, [[Rates]]),
    "instance": (Rates().of_instance, [[Rates]]),
    "inner": (Rates.Inner(), [[Rates.Inner]]),
    "inner instance": (Rates.Inner().of_instance, [[Rates.Inner]]),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(save, name):
    method, ways = METHODS[name]
    file = save(learning_rate=method)
    with pytest.raises(UntrustedContentError, match="allow="):
        DDPGPaper.load(file)
    for allow in ways:
        assert DDPGPaper.load(file, allow=allow).learning_rate(1.0) == 0.25


def test_private_methods_are_not_part_of_a_permission(save):
    file = save(learning_rate=Rates()._private)
    with pytest.raises(CheckpointError):
        DDPGPaper.load(file, allow=[Rates])


class RandomNoise(NormalActionNoise):
    """Noise with every generator of NumPy's."""

    def __init__(self):
        super().__init__(np.zeros(2), np.ones(2))
        bit_generators = np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64
        self.generators = [np.random.Generator(bits(7)) for bits in bit_generators]
        self.sequence = np.random.SeedSequence(7)

    def __call__(self):
        return np.array([sum(generator.normal() for generator in self.generators), self.sequence.entropy])


def test_a_noise_with_generators_is_in_models_and_snapshots(tmp_path):
    noise, env = RandomNoise(), PointEnv()
    model = DDPGPaper("MlpPolicy", env, action_noise=noise, buffer_size=20, policy_kwargs={"net_arch": [4]})
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", allow=[RandomNoise])
    assert loaded.action_noise().tolist() == copy.deepcopy(noise)().tolist()
    model.learn(60, callback=SnapshotCallback(tmp_path / "snapshots", 1))
    with pytest.raises(UntrustedContentError, match="RandomNoise"):
        DDPGPaper.resume(tmp_path / "snapshots", PointEnv())
    resumed = DDPGPaper.resume(tmp_path / "snapshots", PointEnv(), allow=[RandomNoise])
    assert type(resumed.action_noise) is RandomNoise


def test_allow_takes_classes_and_functions(tmp_path):
    with pytest.raises(InvalidArgumentTypeError, match="`allow` must list classes or functions"):
        DDPGPaper.load(tmp_path / "model", allow=[Color.RED])
    with pytest.raises(InvalidArgumentTypeError, match=r"one class or function per name, got two for .*<lambda>"):
        DDPGPaper.load(tmp_path / "model", allow=[lambda p: 1, lambda p: 2])


class WithVariables(DDPGPaper):
    shape = (2,)

    def _setup_model(self):
        super()._setup_model()
        self.log_alpha, self.unused = th.zeros(self.shape, requires_grad=True), None

    def _get_torch_save_params(self):
        state_dicts, variables = super()._get_torch_save_params()
        return state_dicts, [*variables, "log_alpha", "unused"]


def test_variables_of_a_subclass(tmp_path, monkeypatch):
    """As in SB3, whose programs read them, too."""
    model = WithVariables("MlpPolicy", PointEnv(), buffer_size=100, device="cpu", policy_kwargs={"net_arch": [4]})
    model.log_alpha.data += 5
    model.learn(60, callback=SnapshotCallback(tmp_path / "run", every=25))
    model.save(tmp_path / "model")
    for copied in (WithVariables.load(tmp_path / "model"), WithVariables.resume(tmp_path / "run", PointEnv())):
        assert copied.log_alpha.tolist() == [5, 5]
        assert copied.log_alpha.requires_grad
        assert copied.unused is None
    assert load_from_zip_file(tmp_path / "model")[2]["log_alpha"].tolist() == [5, 5]
    with pytest.raises(DamagedCheckpointError, match=r"log_alpha.*other tensors than \[\]"):
        DDPGPaper.load(tmp_path / "model")
    monkeypatch.setattr(WithVariables, "shape", (3,))
    with pytest.raises(DamagedCheckpointError, match=r"`log_alpha` is \(2,\), the model's is \(3,\)"):
        WithVariables.load(tmp_path / "model")
    model.unused = model.actor
    with pytest.raises(CheckpointError, match="`unused` is a Actor"):
        model.save(tmp_path / "model")

"""Denormal floats are flushed inside the block and during ``learn()``, and the former setting comes back."""

import multiprocessing
import sys

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import ToyEnv
from toys import small_model

from ddpg_ext import NonFiniteError
from ddpg_ext.common.denormals import _set_flush_denormal, flush_denormals
from ddpg_ext.common.matmul_kernels import matmul_precision

DENORMAL = 1e-40

pytestmark = pytest.mark.skipif(not th.set_flush_denormal(False), reason="the processor has no such mode")


def flushed():
    """Whether a product that is denormal comes out as zero."""
    return (th.tensor([DENORMAL * 1e10]) * 1e-10).item() == 0.0


@pytest.fixture(params=[False, True], ids=["off before", "on before"])
def before(request):
    th.set_flush_denormal(request.param)
    yield request.param
    th.set_flush_denormal(False)


def test_inside_and_after(before):
    assert flushed() == before
    with flush_denormals():
        assert flushed()
        with flush_denormals():
            assert flushed()
        assert flushed()
    assert flushed() == before


def share_flushed():
    """Of products that are denormal, in a vector of which each thread computes a part."""
    return (th.full((1_000_000,), DENORMAL * 1e10) * 1e-10 == 0).float().mean().item()


@pytest.fixture
def two_threads():
    """Both as torch has them at first, and running."""
    before = th.get_num_threads()
    th.set_num_threads(2)
    _set_flush_denormal(False, 2)
    assert share_flushed() == 0.0
    yield
    th.set_num_threads(2)
    _set_flush_denormal(False, 2)
    th.set_num_threads(before)


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are not those of GNU's OpenMP")


@only_linux
def test_in_worker_threads(two_threads):
    """torch's own function sets the mode of the calling thread alone."""
    th.set_flush_denormal(True)
    assert share_flushed() == 0.5
    th.set_flush_denormal(False)
    with flush_denormals():
        assert share_flushed() == 1.0
        with flush_denormals():
            assert share_flushed() == 1.0
        assert share_flushed() == 1.0
    assert share_flushed() == 0.0


@only_linux
def test_learn_flushes_in_worker_threads(two_threads):
    spy = Spy(share_flushed)
    make_model().learn(2, spy)
    assert spy.seen == [1.0, 1.0]
    assert share_flushed() == 0.0


def exit_flushed():
    with flush_denormals():
        sys.exit(0 if flushed() else 1)


@only_linux
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_process(two_threads):
    """It has no worker threads, and none can be started: GNU's OpenMP would wait for them forever."""
    process = multiprocessing.get_context("fork").Process(target=exit_flushed)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0


class Spy(BaseCallback):
    def __init__(self, look=flushed):
        super().__init__()
        self.look = look
        self.seen = []

    def _on_step(self):
        self.seen.append(self.look())
        return True


def make_model(**kwargs):
    return small_model(ToyEnv(**kwargs), policy_kwargs={"net_arch": [8, 8]})


def test_learn_flushes_and_restores(before):
    spy = Spy()
    make_model().learn(20, spy)
    assert spy.seen == [True] * 20
    assert flushed() == before


def test_learn_restores_after_an_error(before):
    with pytest.raises(NonFiniteError):
        make_model(fault=("reward", 5, float("nan"))).learn(20)
    assert flushed() == before


def test_decaying_weights_do_not_become_denormal():
    """Weights that only decay end at zero, not among the denormals where every product is slow."""
    model = make_model()
    weight = model.critic.action_input.weight_action
    with th.no_grad():
        weight.fill_(1.2e-38)
    model.learn(30)
    values = weight.detach().abs()
    assert not ((values > 0) & (values < th.finfo(th.float32).tiny)).any()


def test_without_a_precision_torchs_settings_are_not_touched():
    """A process may use torch's new interface, which excludes the old one."""
    before = th.backends.cuda.matmul.fp32_precision
    th.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with matmul_precision(None):
            pass
        small_model().learn(20)
    finally:
        th.backends.cuda.matmul.fp32_precision = before
    with matmul_precision(None):
        th.set_float32_matmul_precision("high")
    assert th.get_float32_matmul_precision() == "high"
    th.set_float32_matmul_precision("highest")

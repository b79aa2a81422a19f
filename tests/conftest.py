"""What all tests share."""

import os

# Before torch is imported: tests run beside other work, and two processes with spinning threads starve each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.logger import configure
from toys import assert_same_arrays

th.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def away_from_the_repository(tmp_path_factory):
    """Run in a temporary folder: MuJoCo, for instance, writes its log to the current folder."""
    root, before = str(Path(__file__).parents[1]), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        # Processes that tests start find the package that is tested
        patch.setenv("PYTHONPATH", root, prepend=os.pathsep)
        os.chdir(tmp_path_factory.mktemp("cwd"))
        yield
        os.chdir(before)


@pytest.fixture
def silent_logger():
    """A logger without outputs: what was recorded since the last dump is in its ``name_to_value``."""
    return configure(None, [])


@pytest.fixture
def weights_of():
    """All numbers that a model has learned, by name: networks, running averages and optimisers, as arrays."""

    def weights_of(model):
        arrays = {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}
        for name in ("actor", "critic"):
            network = getattr(model, name)
            for param_name, param in network.named_parameters():
                for key, value in network.optimizer.state.get(param, {}).items():
                    arrays[f"{name}.optimizer.{param_name}.{key}"] = value.numpy().copy()
        return arrays

    return weights_of


@pytest.fixture
def assert_same_bits():
    """Two dicts of arrays must be equal bit for bit."""
    return assert_same_arrays

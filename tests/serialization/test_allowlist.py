"""Every name that the package keeps as a string, for what a file may use, is the name of something."""

import importlib

import pytest

from ddpg_ext.serialization.pickled_closures import FUNCTION_PARTS
from ddpg_ext.serialization.reconstruct import HANDLERS
from ddpg_ext.serialization.safe_pickle import STATE_SETTER, canonical
from ddpg_ext.zoo.run_folder import _MOVED, _WRAPPERS

#: functions of cloudpickle's that were there before version 2.2
OLD_CLOUDPICKLE = {"_make_skel_func", "_fill_function", "_get_cell_contents"}
#: names of handlers that no installed package has any more, and why files still have them
HISTORICAL_NAMES = {
    "gymnasium.spaces.dict_space.Dict": "gym before 0.13",
    "gymnasium.spaces.tuple_space.Tuple": "gym before 0.13",
    "gymnasium.utils.seeding.RandomNumberGenerator._generator_ctor": "gym 0.22 to 0.26",
}
WRAPPERS = [f"{module}.{name}" for module, names in _WRAPPERS.items() for name in names]


def resolve(path):
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == path.partition(".")[0] in ("rl_zoo3", "sb3_contrib"):
            pytest.skip(f"{error.name} is not installed")
        return getattr(resolve(module), name)  # a method


CLOUDPICKLE = [
    path for path in (STATE_SETTER, *sorted(FUNCTION_PARTS)) if path.rpartition(".")[2] not in OLD_CLOUDPICKLE
]


@pytest.mark.parametrize("path", [*(path for path in HANDLERS if path not in HISTORICAL_NAMES), *CLOUDPICKLE])
def test_functions_and_classes_that_the_reader_knows(path):
    assert callable(resolve(path))
    assert canonical(path) == path


@pytest.mark.parametrize("path", HISTORICAL_NAMES)
def test_historical_names_are_marked_because_nothing_has_them_any_more(path):
    assert path in HANDLERS
    with pytest.raises((AttributeError, ModuleNotFoundError, ValueError)):
        resolve(path)


@pytest.mark.parametrize("path", sorted({*WRAPPERS, *(name for name in _MOVED.values() if name not in _WRAPPERS)}))
def test_wrappers_that_a_run_may_name(path):
    assert isinstance(resolve(path), type)
    assert any(path.startswith(f"{module}.") for module in _WRAPPERS)

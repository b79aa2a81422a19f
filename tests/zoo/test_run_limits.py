"""What the files of a run may ask from an environment and its wrappers."""

import functools
import importlib
import inspect
import math
import os
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.mujoco import MujocoEnv

from ddpg_ext import CheckpointError, DDPGPaper, EnvironmentNotFoundError, InvalidArgumentError, UntrustedContentError
from ddpg_ext import load_zoo_run as load
from ddpg_ext.common.environments import register
from ddpg_ext.zoo import run_folder, run_limits
from ddpg_ext.zoo.run_limits import check_env_kwargs, check_wrapped_size, check_wrapper

#: Values that no argument may have: text, paths, code, and numbers that are too large or none
HOSTILE = {
    "text": "scene.xml",
    "path": "/etc/passwd",
    "empty text": "",
    "a Path": Path("scene.xml"),
    "bytes": b"scene.xml",
    "a function": os.system,
    "a class": dict,
    "a list of text": ["a", "b"],
    "a pair of text": ("0", "1"),
    "a dict with text": {"time_limit": "1", "env_id": "Pendulum-v1"},
    "a dict with a dict": {"time_limit": {}},
    "many numbers": [0.0] * 100_000,
    "a large number": 1e12,
    "a negative large number": -(10**12),
    "an endless integer": 16**5000,
    "NaN": math.nan,
    "an infinite number": math.inf,
}
SETTINGS = Path(__file__).parents[2] / "benchmarks" / "settings"


def environments(package):
    """Ids of the environments that a package registers."""
    if package == "shimmy":
        gym.register_envs(pytest.importorskip("shimmy"))
    return [env_id for env_id, spec in gym.registry.items() if run_limits._entry_point(spec).startswith(f"{package}.")]


def parameters(env_id):
    """Parameters of an environment's constructor and of its base class that gets the ``**kwargs``."""
    entry_point = gym.registry[env_id].entry_point
    if isinstance(entry_point, str):
        module, _, name = entry_point.partition(":")
        try:
            entry_point = getattr(importlib.import_module(module), name)
        except ImportError:  # JAX is not installed
            return {}, set()
    result = dict(inspect.signature(entry_point).parameters)
    if inspect.isclass(entry_point) and issubclass(entry_point, MujocoEnv):
        result |= inspect.signature(MujocoEnv).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    bound = {*getattr(entry_point, "keywords", {}), *gym.registry[env_id].kwargs}
    return {name: p.default for name, p in result.items() if p.kind not in kinds}, bound


def is_refused(env_id, name, value):
    try:
        check_env_kwargs(env_id, {name: value}, "args.yml")
    except UntrustedContentError:
        return True
    return False


@pytest.mark.parametrize("package", ["gymnasium", "shimmy"])
def test_no_argument_of_any_environment_takes_text_a_path_or_code(package, monkeypatch):
    monkeypatch.setattr(run_limits, "_accepted", functools.cache(run_limits._accepted))  # once an environment
    makes = inspect.signature(gym.make).parameters
    more = ("additional_wrappers", "env_id", "env", "make_kwargs", "render_kwargs", "task_kwargs", "environment_kwargs")
    wrong = []
    for env_id in environments(package):
        names, bound = parameters(env_id)
        for name in {*names, *makes, *more, *run_limits._MAKE_ARGUMENTS}:
            wrong += [(env_id, name, label) for label, value in HOSTILE.items() if not is_refused(env_id, name, value)]
        if {"env", "env_id", "env_fn"} & (names.keys() - bound):  # an argument chooses the environment
            with pytest.raises(UntrustedContentError, match="choose another environment to build"):
                check_env_kwargs(env_id, {}, "args.yml")
            continue
        for name, default in names.items():
            value = list(default) if isinstance(default, tuple) else default
            if isinstance(value, bool | int | float) or (isinstance(value, list) and len(value) <= 3):
                wrong += [(env_id, name, value)] if is_refused(env_id, name, value) else []
    assert wrong == []


def test_arguments_belong_to_their_environments():
    """A user's own environment of a known name, or one with the same argument, gets nothing from a file."""
    check_env_kwargs("Pendulum-v1", {"g": 5.0}, "args.yml")
    check_env_kwargs("Hopper-v5", {"healthy_z_range": [0.5, math.inf], "frame_skip": 2}, "args.yml")
    gym.register("OwnRunLimits-v0", lambda g=1.0: None)
    try:
        assert is_refused("OwnRunLimits-v0", "g", 5.0)
        assert not is_refused("OwnRunLimits-v0", "max_episode_steps", 5)
    finally:
        del gym.registry["OwnRunLimits-v0"]
    assert is_refused("Hopper-v5", "g", 5.0)
    assert is_refused("Hopper-v5", "frame_skip", 10**9)


def test_arguments_of_dm_control():
    pytest.importorskip("dm_control")
    gym.register_envs(pytest.importorskip("shimmy"))
    render = {"height": 64, "width": 64, "camera_id": 0, "render_flag_overrides": {"shadow": False}}
    for env_id in ("cartpole-swingup", "RodentRunGaps", "reach_site_features"):
        check_env_kwargs(f"dm_control/{env_id}-v0", {"render_kwargs": render}, "args.yml")
        for wrong in ({"height": 10**6}, {"camera_id": "/etc"}, {"render_flag_overrides": {"shadow": "x"}}, {"x": 1}):
            assert is_refused(f"dm_control/{env_id}-v0", "render_kwargs", {**render, **wrong})
    task = {"time_limit": 10.0, "random": 3}
    kwargs = {"task_kwargs": task, "environment_kwargs": {"flat_observation": True, "n_sub_steps": 2}}
    check_env_kwargs("dm_control/cartpole-swingup-v0", kwargs, "args.yml")
    for name, wrong in (("task_kwargs", {"n_poles": 10**6}), ("environment_kwargs", {"n_sub_steps": 10**9})):
        assert is_refused("dm_control/cartpole-swingup-v0", name, wrong)
    assert is_refused("dm_control/cartpole-swingup-v0", "domain_name", "humanoid")
    assert is_refused("dm_control/RodentRunGaps-v0", "task_kwargs", task)


@pytest.mark.skipif(not SETTINGS.is_dir(), reason="only in the repository")
def test_the_benchmarks_runs_open():
    for file in SETTINGS.glob("*.yml"):
        settings = yaml.safe_load(file.read_text())
        kwargs = {key: value for key, value in (settings.get("env_kwargs") or {}).items() if key != "render_mode"}
        if kwargs:
            register(settings["env"])
            check_env_kwargs(settings["env"], kwargs, file.name)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """Write an agent for Pendulum, once."""
    path = tmp_path_factory.mktemp("agent") / "Pendulum-v1.zip"
    DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [4, 4]}, device="cpu").save(path)
    return path


@pytest.fixture
def run(agent, tmp_path):
    """Write a run whose agent can be loaded."""

    def write(args=None, config=None):
        settings = tmp_path / "Pendulum-v1_1" / "Pendulum-v1"
        settings.mkdir(parents=True)
        (settings.parent / "Pendulum-v1.zip").write_bytes(agent.read_bytes())
        (settings / "args.yml").write_text(yaml.safe_dump({"env": "Pendulum-v1", **(args or {})}))
        (settings / "config.yml").write_text(yaml.safe_dump(config or {}))
        return settings.parent

    return write


@pytest.fixture
def folder(run, monkeypatch):
    """Write a run from which no environment may be built."""

    def no_environment(*_, **__):
        raise AssertionError("an environment was built")

    monkeypatch.setattr(run_folder, "make_vec_env", no_environment)
    return run


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "part"),
    [
        ("HalfCheetah-v5", {"xml_file": "/tmp/scene.xml"}, "`xml_file` with the value '/tmp/scene.xml'"),
        ("HalfCheetah-v5", "{'xml_file': '/tmp/scene.xml'}", "`xml_file`"),
        ("HalfCheetah-v5", {"frame_skip": 10**9}, "only a number from -2048 to 2048"),
        ("HalfCheetah-v5", {"max_geom": 10**9}, "`max_geom`"),
        ("Pendulum-v1", f"{{'g': {16**5000:#x}}}", "thousands of digits"),
        ("Pendulum-v1", {"x" * 9999: 1}, "pass load_zoo_run(..., env_kwargs={...})"),
        ("Pendulum-v1", {"additional_wrappers": [{"name": "x", "entry_point": "os:system"}]}, "additional_wrappers"),
        ("os:Evil-v0", {}, "names a module to import"),
        ("Evil-v" + "9" * 5000, {}, "environment id"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("file", ["args.yml", "config.yml"])
def test_refused_settings(folder, file, env_id, env_kwargs, part):
    if file == "args.yml":
        run = folder({"env": env_id, "env_kwargs": env_kwargs})
    else:
        run = folder({"env": env_id}, {"env_kwargs": env_kwargs})
    with pytest.raises(UntrustedContentError) as caught:
        load(run)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("packages", [3, "os", [["os"]], {"os": 1}])
def test_packages_that_are_no_names(folder, packages):
    with pytest.raises(CheckpointError, match="gym_packages"):
        load(folder({"gym_packages": packages}))


def test_a_file_imports_no_package(folder):
    run = folder({"env": "Evil-v0", "gym_packages": ["antigravity"] * 1000})
    with pytest.raises((EnvironmentNotFoundError, CheckpointError)):
        load(run)
    assert "antigravity" not in sys.modules


class OwnPendulum(PendulumEnv):
    """An environment with an argument that chooses a file."""

    def __init__(self, file="none", **kwargs):
        super().__init__(**kwargs)
        self.file = file


@pytest.fixture
def own_env():
    gym.register("OwnPendulum-v0", OwnPendulum, max_episode_steps=200)
    yield "OwnPendulum-v0"
    del gym.registry["OwnPendulum-v0"]


def test_the_ways_out(run, own_env):
    """The caller's own arguments are not restricted, nor are those of files that the caller trusts."""
    path = run({"env": own_env, "env_kwargs": {"file": "from the run"}})
    with pytest.raises(UntrustedContentError, match="`file` with the value 'from the run'"):
        load(path)
    assert load(path, trusted=True)[1].get_attr("file") == ["from the run"]
    assert load(path, env_kwargs={"file": "mine"})[1].get_attr("file") == ["mine"]
    assert load(path, env_kwargs={})[1].get_attr("file") == ["none"]
    assert load(path, env="Pendulum-v1", env_kwargs={"g": 3.0})[1].get_attr("g") == [3.0]
    assert load(path, env=gym.make(own_env, file="mine"))[1].get_attr("file") == ["mine"]
    with pytest.raises(InvalidArgumentError, match="env_kwargs"):
        load(path, env=gym.make(own_env), env_kwargs={"file": "mine"})


def test_the_caller_may_name_a_module(run, tmp_path, monkeypatch):
    (tmp_path / "a_module_of_mine.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "gym.register('OfAModule-v0', PendulumEnv, max_episode_steps=50)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = run()
    try:
        assert load(path, env="a_module_of_mine:OfAModule-v0")[1].get_attr("spec")[0].max_episode_steps == 50
    finally:
        gym.registry.pop("OfAModule-v0", None)
    with pytest.raises(EnvironmentNotFoundError, match="no_such_module"):
        load(path, env="no_such_module:OfAModule-v0")


def test_settings_that_loading_does_not_need_are_not_read(run):
    """Programs of the Zoo import and build what these name."""
    names = ("callback", "replay_buffer_class", "policy_kwargs", "monitor_kwargs", "n_envs")
    path = run(config={name: [{"antigravity.fly": {"size": 10**9}}] for name in names})
    load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**9, 16**5000, [1, [-(10**9)]], {"a": 1e5}], ids=range(6))
def test_numbers_of_wrappers(value):
    with pytest.raises(UntrustedContentError, match="the number"):
        check_wrapper("gymnasium.wrappers.FrameStackObservation", {"stack_size": value})


def test_sizes_of_wrappers_multiply():
    image = spaces.Box(0, 255, (96, 96, 3), np.uint8)
    usual = [{"skip": 4}, {"shape": [84, 84]}, {"keep_dim": True}, {"stack_size": 4}, {"delay": 10}, {"n_stack": 1}]
    check_wrapped_size(image, usual)
    check_wrapped_size(spaces.Dict({"a": image, "b": spaces.Box(-1, 1, (), np.float32)}), [{"n_stack": 4}])
    for hostile in (
        [{"stack_size": 10_000}],
        [{"stack_size": 10_000}, {"shape": [1, 1]}],
        [{"shape": [10_000, 10_000]}],
        [{"shape": 10_000}, {"n_stack": 10_000}],
        [{"size": 10_000}],
        [{"size": 100, "repeat": 1000}],
        [{"skip": 300}, {"skip": 300}],
        [{"stack_size": 1e4}] * 200,
        [{"repeat_action_duration": [1, 10_000]}],
        [{"horizon": 1000}, {"delay": 1000}],
    ):
        with pytest.raises(UntrustedContentError, match="multiply"):
            check_wrapped_size(image, hostile)


def test_every_number_of_a_wrapper_is_known():
    """Each argument of a listed wrapper multiplies, sets a shape, or is harmless."""
    harmless = {
        *("min_reward", "max_reward", "min_action", "max_action", "min_obs", "max_obs", "noise_std", "smoothing_coef"),
        *("max_steps", "max_episode_steps", "reward_offset", "n_successes", "repeat_action_probability"),
        *("dtype", "filter_keys", "padding_type", "dict_time_key", "key", "channels_order"),  # text
        *("keep_dim", "flatten", "normalize_time", "test_mode", "raise_exception", "warn_once", "check_inf"),  # flags
    }
    for module, names in run_folder._WRAPPERS.items():
        for name in names:
            arguments = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)[1:]
            assert set(arguments) <= {*harmless, *run_limits._COUNTS, *run_limits._SHAPES}, name


def test_wrappers_of_a_run_are_bounded_together(run):
    stacks = [{"gymnasium.wrappers.FrameStackObservation": {"stack_size": 300}} for _ in range(2)]
    path = run(config={"env_wrapper": stacks, "frame_stack": 300})
    with pytest.raises(UntrustedContentError, match="multiply"):
        load(path)

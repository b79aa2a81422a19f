"""Opening run folders of the RL Zoo and of ``examples/train.py``."""

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch as th
from gymnasium.error import Error as GymError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_normalize

from ddpg_ext.checkpoints.load import load_model
from ddpg_ext.checkpoints.model_zip import Trust
from ddpg_ext.checkpoints.vec_normalize import load_vec_normalize
from ddpg_ext.common.checks import check_dict, check_path, check_seed, is_count, plain
from ddpg_ext.common.environments import missing_package, register
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    EnvironmentNotFoundError,
    InvalidArgumentError,
    UntrustedContentError,
)
from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper
from ddpg_ext.zoo.run_files import BEST_STATISTICS, literal, ordered, read_yaml
from ddpg_ext.zoo.run_limits import check_env_kwargs, check_wrapped_size, check_wrapper

_STEPS = re.compile(r"(.+)_(\d+)_steps\.zip")  # the names of SB3's CheckpointCallback
#: wrappers that a file may name, with literal arguments. They neither write files nor call their arguments
_WRAPPERS = {
    "gymnasium.wrappers": {
        *("RescaleAction", "ClipAction", "FlattenObservation", "FilterObservation", "RescaleObservation", "TimeLimit"),
        *("TimeAwareObservation", "FrameStackObservation", "GrayscaleObservation", "ResizeObservation", "ClipReward"),
        *("DtypeObservation", "ReshapeObservation", "MaxAndSkipObservation", "DelayObservation", "StickyAction"),
    },
    "sb3_contrib.common.wrappers": {"TimeFeatureWrapper"},
    "rl_zoo3.wrappers": {
        *("TimeFeatureWrapper", "HistoryWrapper", "HistoryWrapperObsDict", "MaskVelocityWrapper", "FrameSkip"),
        *("DelayedRewardWrapper", "ActionNoiseWrapper", "ActionSmoothingWrapper", "TruncatedOnSuccessWrapper"),
    },
    "ddpg_ext.envs": {"FreshWorld", "PixelActionRepeat"},
    "stable_baselines3.common.vec_env": {"VecFrameStack", "VecTransposeImage", "VecExtractDictObs", "VecCheckNan"},
}
#: new path for each old path of a wrapper
_MOVED = {
    # Renamed in rl_zoo3 2.0
    "rl_zoo3.wrappers.DoneOnSuccessWrapper": "rl_zoo3.wrappers.TruncatedOnSuccessWrapper",
    "utils.wrappers.DoneOnSuccessWrapper": "rl_zoo3.wrappers.TruncatedOnSuccessWrapper",
    "gym.wrappers": "gymnasium.wrappers",
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "utils.wrappers": "rl_zoo3.wrappers",
}


def load_zoo_run(
    path: str | os.PathLike[str],
    *,
    checkpoint: Literal["best", "last"] | int | None = None,
    env: GymEnv | str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    device: th.device | str = "auto",
    trusted: bool = False,
    allow: Iterable[Any] = (),
    custom_objects: dict[str, Any] | None = None,
    seed: int | None = None,
) -> tuple[DDPGPaper, VecEnv]:
    """
    Open an agent of the RL Zoo or of ``examples/train.py``, also one from somebody else.

    No code in its files is executed unless ``trusted``. The environment gets the run's wrappers and normalisation. The
    statistics of the normalisation are frozen, so before you continue training, set ``training`` and ``norm_reward``
    of the ``VecNormalize``.

    :param path: a run (``logs/ddpg/Pendulum-v1_1``), a zip file, or a folder of runs, of which the run with the highest
        number is opened, or the run that changed last if there are several environments
    :param checkpoint: "best" (``best_model.zip``), "last" (``<env>.zip``), or the number of steps of a
        ``<prefix>_<steps>_steps.zip`` of SB3's ``CheckpointCallback``; None: the best if it exists, else the last
    :param env: environment to use instead of the run's: an id, an environment or a ``VecEnv``. Only an id gets the
        run's wrappers
    :param env_kwargs: arguments of the environment, which replace all of the run's. The files of a run may choose only
        harmless arguments, such as numbers and flags of known environments
    :param device: "auto", "cpu", "cuda", ...
    :param trusted: allow the files to run code; see :meth:`DDPGPaper.load`
    :param allow: your own classes that the files may use
    :param custom_objects: values by name that replace saved attributes
    :param seed: seed of the environment, from 0 to 2**32 - 1; None: its own
    :return: the model, with the environment set, and the environment
    :raises CheckpointNotFoundError: if there is no such run, or no such checkpoint in it
    :raises EnvironmentNotFoundError: if the environment cannot be built here; the message names the package to install
        or the argument to pass, and the attribute ``model`` of the error is the model without environment
    :raises CheckpointError: if a file is damaged or asks for something that is not allowed
    :raises InvalidArgumentError: for arguments that contradict each other, or out of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    """
    if env_kwargs is not None and not (env is None or isinstance(env, str)):
        raise InvalidArgumentError(
            "`env_kwargs` is for an environment that load_zoo_run builds; leave it out, or pass env= with an id"
        )
    if env_kwargs is not None:
        check_dict("env_kwargs", env_kwargs)
    seed = check_seed(seed)
    file = _model_file(Path(check_path("path", path)), plain(checkpoint))
    settings = _Settings(file)
    trust = Trust(trusted, allow, custom_objects)
    vec_env: VecEnv
    if env is None or isinstance(env, str):
        try:
            vec_env = settings.make_env(env, env_kwargs, seed, trust)
        except EnvironmentNotFoundError as error:
            error.model = load_model(DDPGPaper, file, None, device, trust)
            raise
    else:
        vec_env = DDPGPaper._wrap_env(env, 0)
    try:
        if unwrap_vec_normalize(vec_env) is None:
            vec_env = settings.normalize(vec_env, trust)
        model = load_model(DDPGPaper, file, vec_env, device, trust)
    except BaseException:
        if env is None or isinstance(env, str):
            vec_env.close()
        raise
    assert model.env is not None  # for mypy
    if seed is not None:
        model.env.seed(seed)  # seed again, because loading has passed the model's seed to the environment
    return model, model.env


def _model_file(path: Path, checkpoint: str | int | None) -> Path:
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise CheckpointNotFoundError(f"{str(path)[:80]!r} cannot be opened: {error.strerror}") from None
    if is_folder:
        return _checkpoint(_latest_run(path), checkpoint)
    if checkpoint is not None:
        raise InvalidArgumentError(f"`checkpoint` chooses a file in a folder, but {path} is not a folder")
    file = path if path.exists() else path.with_name(f"{path.name}.zip")
    if not file.exists():
        raise CheckpointNotFoundError(f"there is no run {path}; pass a run folder, a folder of runs, or a zip file")
    return file


def _latest_run(path: Path) -> Path:
    """Return the run itself, or the last run in a folder of runs."""
    if any(path.glob("*.zip")):
        return path
    runs = [folder for folder in path.iterdir() if folder.is_dir() and any(folder.glob("*.zip"))]
    if not runs:
        raise CheckpointNotFoundError(f"{path} is neither a run nor a folder of runs, because it has no zip file")
    numbered = [match for run in runs if (match := re.fullmatch(r"(.+)_(\d{1,9})", run.name))]
    if len(numbered) == len(runs) and len({match[1] for match in numbered}) == 1:
        return max(runs, key=lambda run: int(run.name.rpartition("_")[2]))
    return max(runs, key=lambda run: run.stat().st_mtime_ns)


def _checkpoint(run: Path, checkpoint: str | int | None) -> Path:
    # For equal steps, the Zoo's name
    zips = sorted(run.glob("*.zip"), key=lambda file: file.name.startswith("rl_model"))
    steps = {int(match[2]): file for file in zips if (match := _STEPS.fullmatch(file.name))}
    last = run / f"{_env_name(run) or run.name}.zip"
    if not last.is_file():
        zips = [file for file in zips if file.name != "best_model.zip"]
        others = [file for file in zips if file not in steps.values()] or zips
        last = others[0] if len(others) == 1 else last
    files: dict[Any, Path] = {"best": run / "best_model.zip", "last": last, **dict(sorted(steps.items()))}
    files = {name: file for name, file in files.items() if file.is_file()}
    if checkpoint is None:
        checkpoint = next((name for name in ("best", "last", max(steps, default=None)) if name in files), None)
    elif checkpoint not in ("best", "last") and type(checkpoint) is not int:
        raise InvalidArgumentError(
            f"`checkpoint` must be None, 'best', 'last' or a number of steps, got {checkpoint!r}"
        )
    if checkpoint not in files:
        names = sorted(file.name for file in run.glob("*.zip") if file.is_file())
        raise CheckpointNotFoundError(
            f"{run} has no checkpoint {checkpoint!r}; it has {list(files)}"
            if files
            else f"no zip file in {run} has the name of a checkpoint; pass the path of one of its files: {names}"
        )
    return files[checkpoint]


def _env_name(run: Path) -> str:
    """Return the environment in the name of a run folder, such as Pendulum-v1_1; the Zoo's -uuid appends an id."""
    return re.sub(r"_[0-9a-f-]{36}$", "", run.name).rpartition("_")[0]


class _Settings:
    """Read the settings of the environment in the run folder of a model's file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.run = file.parent
        # The folder with the settings is named like the environment; other folders are not part of the run
        names = [_env_name(self.run), file.stem]
        if file.name == "best_model.zip" or _STEPS.fullmatch(file.name):
            names += sorted(other.stem for other in self.run.glob("*.zip"))  # of a run folder with another name
        self._names = names
        folders = [self.run / name for name in names if name and (self.run / name / "config.yml").is_file()]
        self.folder = (folders or [self.run])[0]
        self.args = read_yaml(self.folder / "args.yml")
        self.config = read_yaml(self.folder / "config.yml")

    @property
    def env_id(self) -> str | None:
        stored = self.args.get("env", self.args.get("env_id"))
        if isinstance(stored, str):
            return stored
        return next((name for name in [self.file.stem, *self._names] if re.fullmatch(r".+-v\d+", name)), None)

    def make_env(
        self, chosen_id: str | None, chosen_kwargs: dict[str, Any] | None, seed: int | None, trust: Trust
    ) -> VecEnv:
        """Make the environment from its id, with the run's wrappers; the caller's choices replace the run's."""
        env_id = chosen_id or self.env_id
        if env_id is None:
            raise EnvironmentNotFoundError(f"{self.file}: no file in its folder names its environment; pass env=")
        self._import_packages(env_id, trust)
        env_id = _registered_id(env_id, trusted=trust.trusted or chosen_id is not None)
        kwargs = self._env_kwargs(env_id, trust) if chosen_kwargs is None else chosen_kwargs
        wrappers = [_wrapper(name, arguments, trust) for name, arguments in ordered(self.config.get("env_wrapper"))]
        outer = [
            _wrapper(name, arguments, trust)
            for name, arguments in ordered(self.config.get("vec_env_wrapper"))
            if not name.endswith(".VecMonitor")  # it only writes files
        ]
        n_stack = self.config.get("frame_stack") or 1
        if not is_count(n_stack):
            raise CheckpointError(
                f"`frame_stack` in config.yml of {self.folder} must be a whole number above 0, got {n_stack!r:.60}; "
                "correct the file, or pass an environment (not an id) with env="
            )
        if not trust.trusted:
            check_wrapper("VecFrameStack", n_stack)

        def wrap(wrapped: gym.Env) -> gym.Env:
            if not trust.trusted:
                sizes = [arguments for cls, arguments in wrappers + outer if cls not in trust.allowed.extra.values()]
                check_wrapped_size(wrapped.observation_space, [*sizes, {"n_stack": n_stack}])
            for cls, arguments in wrappers:
                wrapped = cls(wrapped, **arguments)
            return wrapped

        try:
            # To watch an agent or to continue training, one environment is enough
            vec_env: VecEnv = make_vec_env(env_id, 1, seed, wrapper_class=wrap, env_kwargs=kwargs)
            for cls, arguments in outer:
                vec_env = cls(vec_env, **arguments)
        except (GymError, ImportError, TypeError) as error:
            raise EnvironmentNotFoundError(_environment_help(env_id, error)) from None
        except CheckpointError:
            raise
        except Exception as error:  # environments and wrappers may raise any error for wrong arguments
            raise CheckpointError(
                f"{self.file}: its environment cannot be built with the run's settings ({error}); pass env="
            ) from error
        return VecFrameStack(vec_env, n_stack) if n_stack > 1 else vec_env

    def _import_packages(self, env_id: str, trust: Trust) -> None:
        """Import the packages that the run asks for, if the caller trusts its files."""
        packages = self.args.get("gym_packages") or []
        if not isinstance(packages, list | tuple) or not all(isinstance(name, str) for name in packages):
            raise CheckpointError(f"{self.folder / 'args.yml'}: `gym_packages` must be names of packages")
        missing = [name for name in packages if name not in sys.modules]
        if trust.trusted:
            for name in missing:
                importlib.import_module(name)
        elif missing and env_id not in gym.registry:
            raise EnvironmentNotFoundError(
                f"{self.folder / 'args.yml'} asks to import {', '.join(missing)[:200]}. Import the packages that you "
                "trust and try again, or pass env="
            )

    def _env_kwargs(self, env_id: str, trust: Trust) -> dict[str, Any]:
        """Return the run's arguments of the environment; as in the Zoo, options replace hyperparameters."""
        source = self.folder / ("args.yml" if self.args.get("env_kwargs") else "config.yml")
        kwargs = literal(self.args.get("env_kwargs") or self.config.get("env_kwargs"), "env_kwargs") or {}
        if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
            raise CheckpointError(f"{source}: `env_kwargs` must be a mapping (name: value)")
        kwargs = {key: value for key, value in kwargs.items() if key != "render_mode"}  # a file must not open windows
        if not trust.trusted:
            check_env_kwargs(env_id, kwargs, str(source))
        return kwargs

    def normalize(self, vec_env: VecEnv, trust: Trust) -> VecEnv:
        """Wrap the environment with the run's normalisation, if it has one."""
        steps = _STEPS.fullmatch(self.file.name)
        # The Zoo's name, and that of SB3's documentation
        candidates = [self.folder / "vecnormalize.pkl", self.run / "vecnormalize.pkl", self.run / "vec_normalize.pkl"]
        if self.file.name == "best_model.zip":
            candidates.insert(0, self.folder / BEST_STATISTICS)
        if steps:
            candidates.insert(0, self.run / f"{steps[1]}_vecnormalize_{steps[2]}_steps.pkl")
        for candidate in candidates:
            if candidate.exists():
                return load_vec_normalize(candidate, vec_env, trust.allowed)
        others = [file.name for file in sorted(self.run.glob("*_vecnormalize_*_steps.pkl"))]
        if others and not self.config and self.file.name == "best_model.zip":
            names = ", ".join(others)[:200]
            warnings.warn(
                f"{self.file} is opened without normalisation. If it needs the statistics in one of {names}, copy that "
                f"file to {self.run / 'vecnormalize.pkl'}, or pass env= with a VecNormalize"
            )
        settings = literal(self.config.get("normalize") or False, "normalize")
        if settings and not (isinstance(settings, dict) and not settings.get("norm_obs", True)):
            raise CheckpointNotFoundError(
                f"observations were normalised, according to {self.folder / 'config.yml'}, but there is no "
                "vecnormalize.pkl in this folder; pass env= with a VecNormalize"
            )
        return vec_env


def _wrapper(name: str, arguments: dict[str, Any], trust: Trust) -> tuple[Any, dict[str, Any]]:
    """Return the class of a wrapper that a file may name, and its arguments."""
    for old, new in _MOVED.items():
        if name == old or name.startswith(f"{old}."):
            name = new + name.removeprefix(old)
            break
    if name in trust.allowed.extra:
        return trust.allowed.extra[name], arguments
    if not trust.trusted and not name.endswith(".TimeLimit"):
        check_wrapper(name, arguments)
    module, _, cls = name.rpartition(".")
    base = next((listed for listed in _WRAPPERS if module == listed or module.startswith(f"{listed}.")), None)
    if (base is None or cls not in _WRAPPERS[base]) and not trust.trusted:
        raise UntrustedContentError(
            f"the run's config.yml asks for the wrapper {name[:120]!r}, which is not on the allow-list; pass the class "
            "in allow=[...], or env= with the wrapped environment"
        )
    try:
        return getattr(importlib.import_module(base or module), cls), arguments
    except (ImportError, AttributeError) as error:
        advice = (
            "pip install 'ddpg_ext[zoo]'" if base == "rl_zoo3.wrappers" else "pass env= with the wrapped environment"
        )
        raise EnvironmentNotFoundError(f"the run's wrapper {name} cannot be imported ({error}): {advice}") from None


def _registered_id(env_id: str, trusted: bool) -> str:
    """Register the environment and return its id; a trusted id may begin with a module to import and a colon."""
    if not trusted and not re.fullmatch(r"[\w./-]{1,200}", env_id):
        raise UntrustedContentError(f"the environment id {env_id[:80]!r} names a module to import; pass env=")
    module, _, env_id = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvironmentNotFoundError(f"the module {module!r} of env= cannot be imported ({error})") from None
    try:
        register(env_id)  # imports only packages that this package lists
        gym.spec(env_id)
    except (GymError, ImportError) as error:
        raise EnvironmentNotFoundError(_environment_help(env_id, error)) from None
    return env_id


def _environment_help(env_id: str, error: Exception) -> str:
    """Return an error message that names the package to install or the argument to pass."""
    message = f"the environment {env_id!r} cannot be made: {str(error).strip()[:300]}"
    stem = re.escape(re.sub(r"-v\d+$", "", env_id))
    versions = sorted(name for name in gym.registry if re.fullmatch(stem + r"-v\d+", name) and name != env_id)
    package = missing_package(env_id)
    advice = [f"install {package}"] if package else []
    advice += [f"pass env={versions[-1]!r}, the current version"] if versions else []
    advice.append("pass env= with an environment of the same spaces")
    return f"{message}. Try one of: {'; '.join(advice)}. DDPGPaper.load opens the model without environment."

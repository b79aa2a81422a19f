"""Registration of ``ddpg_paper`` as an algorithm of the RL Zoo."""

import functools
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpg_ext.common.errors import DamagedCheckpointError, MissingExtraError, UntrustedContentError
from ddpg_ext.ddpg_paper import DDPGPaper
from ddpg_ext.zoo.hyperparameters import ALGORITHM
from ddpg_ext.zoo.run_files import read_yaml


def register_zoo() -> None:
    """
    Register ``ddpg_paper`` as an algorithm of the RL Zoo (rl_zoo3) in this process.

    The Zoo's programs and ``ExperimentManager`` then have the algorithm, its hyperparameters and its search space for
    Optuna. A second call changes nothing. ``python -m ddpg_ext train`` and the other commands call it.

    :raises MissingExtraError: if rl_zoo3 is not installed (extra ``zoo``)
    """
    try:
        from ddpg_ext.zoo.experiment import ExperimentManager
        from ddpg_ext.zoo.search_space import convert_ddpg_paper_params, sample_ddpg_paper_params
    except ImportError as error:
        raise MissingExtraError(f"the RL Zoo cannot be imported ({error}): pip install 'ddpg_ext[zoo]'") from error
    entries = {
        "ALGOS": DDPGPaper,
        "HYPERPARAMS_SAMPLER": sample_ddpg_paper_params,
        "HYPERPARAMS_CONVERTER": convert_ddpg_paper_params,
    }
    original = ExperimentManager.__base__
    # The Zoo's modules copy names from each other; modules that are imported later copy the new entries
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "rl_zoo3":
            continue
        for table, entry in entries.items():
            if isinstance(getattr(module, table, None), dict):
                getattr(module, table)[ALGORITHM] = entry
        if getattr(module, "ExperimentManager", None) is original:
            setattr(module, "ExperimentManager", ExperimentManager)  # noqa: B010
    _accept_run_folders(sys.modules["rl_zoo3.utils"])


def _accept_run_folders(utils: Any) -> None:
    """Let ``enjoy`` and ``record_video`` accept any folder with an agent as their ``--folder``."""
    original = utils.get_model_path
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def get_model_path(
        exp_id: int, folder: str, algo: str, env_name: str, *args: Any, **kwargs: Any
    ) -> tuple[str, str, str]:
        run = Path(folder).resolve()
        is_run = any(run.glob("*.zip")) or any(run.glob("*/config.yml"))
        if is_run and not (run / algo).is_dir():  # else it has runs, and perhaps other zip files
            exp_id, folder, algo = -1, str(run.parent), run.name
        name_prefix, model_path, log_path = original(exp_id, folder, algo, env_name, *args, **kwargs)
        for file, key in (("args.yml", "env_kwargs"), ("config.yml", None)):
            _check_settings(Path(log_path, env_name, file), key)
        return name_prefix, model_path, log_path

    utils.get_model_path = get_model_path


def _check_settings(file: Path, key: str | None) -> None:
    """Raise an error for a file of settings that ``enjoy`` and ``record_video`` cannot read."""
    if not file.exists():
        return
    with suppress(UntrustedContentError):  # the Zoo executes code in these files
        settings = read_yaml(file)
        if not settings or (key is not None and key not in settings):
            lacks = f"`{key}`" if settings else "settings"
            raise DamagedCheckpointError(f"{file} has no {lacks}; ddpg_ext.load_zoo_run opens the run without it")

"""Copies of the running statistics of SB3's ``VecNormalize``, to restore them when an invalid value spoils them."""

from typing import Any

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

Statistics = list[tuple[RunningMeanStd, dict[str, Any]]]


def running_statistics(env: VecNormalize | None) -> Statistics:
    """
    Return the present statistics; no array is copied, since an update makes new ones.

    :param env: the normalising wrapper, or None
    :return: the statistics for :func:`restore_statistics`; empty without a wrapper
    """
    if env is None:
        return []
    obs_rms = getattr(env, "obs_rms", None)
    statistics = [*(obs_rms.values() if isinstance(obs_rms, dict) else [obs_rms]), env.ret_rms]
    return [(rms, dict(vars(rms))) for rms in statistics if rms is not None]


def restore_statistics(statistics: Statistics) -> None:
    """
    Restore former statistics.

    :param statistics: from :func:`running_statistics`
    """
    for rms, state in statistics:
        vars(rms).update(state)

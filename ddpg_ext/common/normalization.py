"""A check of values for running statistics, and saving and restoring the statistics of SB3's ``VecNormalize``."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

Statistics = list[tuple[RunningMeanStd, dict[str, Any]]]

#: largest absolute value of accepted observations and rewards. Sums of the squares of larger ones overflow in single
#: precision, and an infinite variance stays infinite
LARGEST = 1e15
_LARGEST_SQUARE = LARGEST**2


def is_moderate(values: np.ndarray) -> bool:
    """Return whether the absolute values of all numbers in an array are at most ``LARGEST``; False for NaN."""
    # The sum of squares decides for nearly all arrays; it is also the fastest test for NaN and infinity
    if values.dtype.char in "fd" and np.vdot(values, values) <= _LARGEST_SQUARE:
        return True
    is_small_integer = values.dtype.kind in "biu" and values.dtype.itemsize < 8
    return is_small_integer or bool((np.abs(values.astype(np.float64)) <= LARGEST).all())


def running_statistics(env: VecNormalize | None) -> Statistics:
    """Return the current statistics, without copying them, because updates make new arrays."""
    if env is None:
        return []
    obs_rms = getattr(env, "obs_rms", None)
    statistics = [*(obs_rms.values() if isinstance(obs_rms, dict) else [obs_rms]), env.ret_rms]
    return [(rms, dict(vars(rms))) for rms in statistics if rms is not None]


def restore_statistics(statistics: Statistics) -> None:
    """Restore the statistics that :func:`running_statistics` returned."""
    for rms, state in statistics:
        vars(rms).update(state)

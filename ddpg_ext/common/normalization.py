"""A check of values that enter running statistics, and copies of those of SB3's ``VecNormalize`` to restore them."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

Statistics = list[tuple[RunningMeanStd, dict[str, Any]]]

#: size up to which observations and rewards are accepted. Sums of the squares of larger ones overflow in single
#: precision, and an infinite variance stays infinite
LARGEST = 1e15
_LARGEST_SQUARE = LARGEST**2


def is_moderate(values: np.ndarray) -> bool:
    """Return whether no number in an array of any shape is NaN, infinite or above ``LARGEST`` in size."""
    # One product tells for nearly all arrays; it is the fastest test for NaN and infinity, too
    if values.dtype.char in "fd" and np.vdot(values, values) <= _LARGEST_SQUARE:
        return True
    return values.dtype.kind in "biu" or bool((np.abs(values.astype(np.float64)) <= LARGEST).all())


def running_statistics(env: VecNormalize | None) -> Statistics:
    """Return the present statistics, none without a wrapper; nothing is copied, as updates make new arrays."""
    if env is None:
        return []
    obs_rms = getattr(env, "obs_rms", None)
    statistics = [*(obs_rms.values() if isinstance(obs_rms, dict) else [obs_rms]), env.ret_rms]
    return [(rms, dict(vars(rms))) for rms in statistics if rms is not None]


def restore_statistics(statistics: Statistics) -> None:
    """Restore the statistics that :func:`running_statistics` returned."""
    for rms, state in statistics:
        vars(rms).update(state)

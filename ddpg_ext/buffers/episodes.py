"""The end of an episode that no step tells a replay buffer of."""

import warnings

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer


def end_episodes(buffer: ReplayBuffer, envs: np.ndarray) -> None:
    """
    End the episodes of environments that are reset between two steps, in any replay buffer.

    The transitions that were added last become the last ones of their episodes: truncated, not terminal, so that their
    targets bootstrap. A buffer with a method ``end_episodes(envs)`` does this itself.

    :param buffer: this package's, SB3's, or one of your own
    :param envs: numbers of the environments
    """
    if hasattr(buffer, "end_episodes"):
        buffer.end_episodes(envs)
    elif hasattr(buffer, "truncate_last_trajectory"):  # HER's, which ends every episode that is under way
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it truncates
            buffer.truncate_last_trajectory()
    elif hasattr(buffer, "timeouts") and buffer.size() > 0 and not buffer.optimize_memory_usage:
        last = buffer.pos - 1
        buffer.timeouts[last, envs] = np.maximum(buffer.timeouts[last, envs], 1 - buffer.dones[last, envs])

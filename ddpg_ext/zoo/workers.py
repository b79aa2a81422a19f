"""Errors for processes of a ``SubprocVecEnv`` that end while they are used."""

import multiprocessing.connection
import signal
from collections.abc import Iterable

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from ddpg_ext.common.errors import DDPGPaperError

#: Errors of the main process when a worker's pipe is closed
PIPE_ERRORS = (EOFError, ConnectionError)


class WorkerError(DDPGPaperError):
    """A process of an environment has ended."""


def worker_error(vec_envs: Iterable[VecEnv], error: Exception) -> WorkerError | None:
    """Explain an error that a process of an environment caused by its end."""
    if not isinstance(error, PIPE_ERRORS):
        return None
    for vec_env in vec_envs:
        if not isinstance(vec_env.unwrapped, SubprocVecEnv):
            continue
        processes = vec_env.unwrapped.processes
        # The pipe may close shortly before the process has ended
        multiprocessing.connection.wait([process.sentinel for process in processes], timeout=5)
        for number, process in enumerate(processes):
            # Status 0 is that of a process that was closed
            if process.exitcode or (process.exitcode == 0 and not vec_env.unwrapped.closed):
                return WorkerError(
                    f"process {number} of {len(processes)} environments {_how_it_ended(process.exitcode)}"
                )
    return None


def startup_error(error: Exception) -> WorkerError:
    """Return the error for a process that ended before its environment was built."""
    return WorkerError(
        f"a process of an environment ended before its environment was built ({type(error).__name__}); if its error is "
        "not above, it was killed, mostly because memory ran out. Use --vec-env dummy, which shows the error, or fewer "
        "environments (-params n_envs:1)"
    )


def _how_it_ended(exitcode: int) -> str:
    if exitcode >= 0:
        return (
            f"ended with status {exitcode}; its error, if it had one, is above. Mend the environment, or use "
            "--vec-env dummy to debug it in one process"
        )
    if exitcode == -signal.SIGKILL:
        return (
            "was killed by SIGKILL, which the system does when memory runs out. Use fewer environments "
            "(-params n_envs:1), a smaller `buffer_size`, or --vec-env dummy"
        )
    return (
        f"was ended by {signal.Signals(-exitcode).name}, which a crash of the simulator causes. Use --vec-env dummy to "
        "debug it in one process"
    )

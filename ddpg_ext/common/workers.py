"""Errors for processes of a ``SubprocVecEnv`` that end while they are used."""

import multiprocessing.connection
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.vec_env import SubprocVecEnv

from ddpg_ext.common.errors import WorkerError

#: Errors of the main process when a worker's pipe is closed
PIPE_ERRORS = (EOFError, ConnectionError)


@contextmanager
def naming_workers() -> Iterator[None]:
    """Raise a :class:`WorkerError` for an error that a process of an environment caused by its end."""
    try:
        yield
    except PIPE_ERRORS as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            vec_env = frame.f_locals.get("self")
            if isinstance(vec_env, SubprocVecEnv):
                _check_processes(vec_env, error)
        raise


def _check_processes(vec_env: SubprocVecEnv, error: Exception) -> None:
    # The pipe may close shortly before the process has ended
    multiprocessing.connection.wait([process.sentinel for process in vec_env.processes], timeout=5)
    for number, process in enumerate(vec_env.processes):
        # Status 0 is that of a process that was closed
        if process.exitcode or (process.exitcode == 0 and not vec_env.closed):
            raise WorkerError(
                f"process {number} of {len(vec_env.processes)} environments {_how_it_ended(process.exitcode)}"
            ) from error


def startup_error(error: Exception) -> WorkerError:
    """Return the error for a process that ended before its environment was built."""
    return WorkerError(
        f"a process of an environment ended before its environment was built ({type(error).__name__}); if its error is "
        "not above, it was killed, mostly because memory ran out. Use --vec-env dummy, which shows the error, or fewer "
        "environments (-params n_envs:1)"
    )


def _how_it_ended(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return (
            "was killed by SIGKILL, which the system does when memory runs out. Use fewer environments "
            "(-params n_envs:1), a smaller `buffer_size`, or DummyVecEnv (--vec-env dummy)"
        )
    how = f"ended with status {exitcode}; its error, if it had one, is above"
    if exitcode < 0:
        how = f"was ended by {signal.Signals(-exitcode).name}, which a crash of the simulator causes"
    return f"{how}. Use DummyVecEnv (--vec-env dummy) to debug it in one process"

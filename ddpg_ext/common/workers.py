"""Errors for processes of a ``SubprocVecEnv`` that end unexpectedly."""

import multiprocessing.connection
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.vec_env import SubprocVecEnv

from ddpg_ext.common.errors import WorkerError

#: errors of the main process after a worker closed its pipe
PIPE_ERRORS = (EOFError, ConnectionError)


@contextmanager
def naming_workers() -> Iterator[None]:
    """Turn an error that follows from the end of an environment's process into a :class:`WorkerError`."""
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
        # A process that was closed has status 0
        if process.exitcode or (process.exitcode == 0 and not vec_env.closed):
            last = len(vec_env.processes) - 1
            raise WorkerError(
                f"the process of environment {number} (of 0 to {last}) {_how_it_ended(process.exitcode)}"
            ) from error


def _how_it_ended(exitcode: int) -> str:
    if exitcode == -getattr(signal, "SIGKILL", 9):  # Windows has no such name
        return (
            "was killed by SIGKILL, usually because memory ran out. Use fewer environments "
            "(-params n_envs:1), a smaller `buffer_size`, or DummyVecEnv (--vec-env dummy)"
        )
    reason = f"ended with status {exitcode}; its error, if it had one, is shown above"
    if exitcode < 0:
        reason = f"was ended by {signal.Signals(-exitcode).name}, usually because the simulator crashed"
    return f"{reason}. Use DummyVecEnv (--vec-env dummy) to debug it in one process"

"""Handling of Ctrl-C while a model is trained and saved."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


class StopOnCtrlC(BaseCallback):
    """
    End training on Ctrl-C. Pass it to ``learn`` as the last callback.

    Use it in a ``with`` block that trains and, in a ``finally`` clause, saves the model. The first Ctrl-C ends training
    after the current step, the second at once. Saving cannot be interrupted. The program continues after the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._training = False
        self._before: Any = None

    def start(self) -> None:
        """Begin to handle Ctrl-C; do nothing outside of the main thread, because only it receives signals."""
        self.count = 0
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._training = True

    def end_training(self) -> None:
        """Ignore Ctrl-C from now on, because the model is being saved."""
        self._training = False

    def end(self) -> None:
        """Restore the previous handler."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def __enter__(self) -> "StopOnCtrlC":
        self.start()
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> bool:
        self.end()
        return error_type is KeyboardInterrupt and self.count > 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if not self._training:
            _say("The model is being saved. This cannot be interrupted")
        elif self.count == 1:
            _say("Training ends after this step, and the model is saved. Press Ctrl-C again to end at once")
        else:
            self._training = False
            raise KeyboardInterrupt

    def _on_training_start(self) -> None:
        self._training = self._before is not None

    def _on_step(self) -> bool:
        return self.count == 0

    def _on_training_end(self) -> None:
        self.end_training()


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Make processes that are started in this block ignore Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    # The signal may have interrupted `print`, which must not be called again then
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())

"""Ctrl-C while a model is trained and saved."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


class Interrupts:
    """
    What Ctrl-C does between :meth:`start` and :meth:`end`.

    The first one is only counted: :class:`StopBetweenSteps` ends training by it, so that no step is left half done. The
    second raises ``KeyboardInterrupt``. Once training is over, none does anything, so that the model is saved.
    """

    def __init__(self) -> None:
        self.count = 0
        self._training = False
        self._before: Any = None
        self._installed = False

    def start(self) -> None:
        """Training begins. In another thread than the main one, which gets no signals, this does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._installed = self._training = True

    def no_more(self) -> None:
        """Training is over; what follows is not to be interrupted."""
        self._training = False

    def end(self) -> None:
        """All is saved: Ctrl-C does what it did before."""
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if not self._training:
            _say("The model is being saved, which is not interrupted")
        elif self.count == 1:
            _say("Training ends with this step, and the model is saved. Ctrl-C once more: at once")
        else:
            self._training = False
            raise KeyboardInterrupt


class StopBetweenSteps(BaseCallback):
    """
    Ends training when there was a Ctrl-C.

    :param interrupts: what counts them
    """

    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__()
        self.interrupts = interrupts

    def _on_step(self) -> bool:
        return self.interrupts.count == 0

    def _on_training_end(self) -> None:
        self.interrupts.no_more()


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile get no Ctrl-C, as long as they live; this one gets it afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    # Not print: the signal may have come while one was printing
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())

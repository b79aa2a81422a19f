"""The progress report of Ray Tune while a sweep runs, with one line for each run."""

import math
import time
from typing import Any

from ray.tune import ProgressReporter

#: shortest and longest time between two reports, in seconds; it grows while the sweep runs
INTERVALS = (5, 60)
#: status of a run that has ended
ENDED = ("TERMINATED", "ERROR")


class RunLines(ProgressReporter):
    """Print a line for each running run, and a last line for each run after its end."""

    def __init__(self, n_runs: int) -> None:
        self._n_runs = n_runs  # `trials` lacks the runs that Tune has not started
        self._start = self._last = time.monotonic()
        self._ended: set[str] = set()

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Return whether a run has ended since the last report, or the last report is old."""
        now = time.monotonic()
        interval = min(max(INTERVALS[0], (now - self._start) / 10), INTERVALS[1])
        return now - self._last > interval or len(self._ended) < sum(trial.status in ENDED for trial in trials)

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        self._last = time.monotonic()
        ended = [str(trial) for trial in trials if trial.status in ENDED]
        running = [str(trial) for trial in trials if trial.status == "RUNNING"]
        n_waiting = self._n_runs - len(ended) - len(running)
        lines = [f"{len(ended)} of {self._n_runs} runs have ended, {len(running)} train, {n_waiting} wait"]
        width = max(map(len, map(str, trials)))
        shown = {*running, *ended} - self._ended
        lines += [f"  {trial!s:{width}}  {_progress(trial)}" for trial in trials if str(trial) in shown]
        print(time.strftime("%H:%M:%S"), "\n".join(lines), flush=True)
        self._ended |= set(ended)


def _progress(trial: Any) -> str:
    numbers = trial.last_result or {}
    if "error" in numbers or trial.status == "ERROR":
        return f"failed: {numbers.get('error', 'its process died several times')}"
    if "steps" not in numbers:
        return "finished earlier" if trial.status in ENDED else "starts"
    state = "finished" if trial.status in ENDED else f"{duration(numbers['seconds_left'])} left"
    speed = f"{numbers['steps_per_second']:>7,.0f} steps/s"
    last_return = "-" if math.isnan(numbers["return"]) else f"{numbers['return']:,.1f}"  # NaN: no episode has ended
    return f"{numbers['steps']:>11,} steps  {speed}  return {last_return:>9}  {state}"


def duration(seconds: float) -> str:
    """Return hours and minutes, rounded up: ``"3 min"``, ``"2 h 05 min"``."""
    hours, minutes = divmod(-int(-seconds // 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"

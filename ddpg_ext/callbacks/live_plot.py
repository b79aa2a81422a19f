"""Learning curves, drawn while training runs."""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.monitor import Monitor

from ddpg_ext.callbacks.periodic import PeriodicCallback
from ddpg_ext.common.checks import check_count, check_path
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra

#: the panels in reading order: name of the curve, title of the axes
_PANELS = {
    "return": "return of an episode, with noise; line: mean of {window}",
    "train/actor_loss": "actor loss",
    "train/critic_loss": "critic loss",
    "length": "length of an episode, in steps; line: mean of {window}",
}
_LOSSES = ("train/actor_loss", "train/critic_loss")


class LivePlotCallback(PeriodicCallback):
    """
    Draw return, actor loss, critic loss and episode length while training runs.

    In a notebook, one figure is updated in place; elsewhere the figure goes to a file. Returns and lengths are those
    of the training episodes, as SB3's ``Monitor`` reports them: one point per episode, and the mean of the last
    ``window``. Losses are the logged ``train/actor_loss`` and ``train/critic_loss``, with one point per log, so one
    every ``log_interval`` episodes. The callback works with every off-policy algorithm of SB3 that logs these.

    In a second ``learn(..., reset_num_timesteps=False)`` with the same callback, the curves continue. After
    ``DDPGPaper.resume``, a new callback shows the earlier episodes, but not the earlier losses.

    :param path: file for the figure, replaced atomically at each drawing; its suffix sets the format (".png", ".svg",
        ".pdf"). None: show the figure in the notebook
    :param every: environment steps between two drawings, at least 1
    :param window: number of episodes in the moving mean, at least 1
    :param verbose: 1: print the name of the file when training starts
    :raises InvalidArgumentError: if ``path`` is None outside of a notebook, or cannot be written, or a number is out
        of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises MissingExtraError: if matplotlib is not installed
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, every: int = 2_000, window: int = 10, verbose: int = 0
    ) -> None:
        super().__init__(every, verbose)
        self.window = check_count("window", window)
        if path is None and not _in_notebook():
            raise InvalidArgumentError("outside of a notebook, `path` must be the name of a file, got None")
        self.path = None if path is None else Path(check_path("path", path))
        #: lists of (environment steps, value): ``return``, ``length``, ``train/actor_loss``, ``train/critic_loss``
        self.curves: dict[str, list[tuple[int, float]]] = {name: [] for name in _PANELS}
        self._figure = import_extra("matplotlib.figure", "ddpg_ext[extra]", "LivePlotCallback").Figure(figsize=(10, 6))
        self._format = "png" if self.path is None else self.path.suffix.lstrip(".").lower()
        supported = self._figure.canvas.get_supported_filetypes()
        if self._format not in supported:
            endings = ", ".join(f".{name}" for name in sorted(supported))
            raise InvalidArgumentError(f"`path` must end in one of {endings}, got {str(path)!r}")
        self._writer = _LossRecorder(self)
        self._display: Any = None

    def _on_training_start(self) -> None:
        if self.model.num_timesteps == 0:
            self.curves = {name: [] for name in _PANELS}
        elif not self.curves["return"]:
            self._read_monitors()
        try:
            self._draw()
        except OSError as error:
            raise InvalidArgumentError(f"`path` {str(self.path)!r} cannot be written: {error}") from error
        # After interrupted training the writer is still in the user's logger
        if self._writer not in self.logger.output_formats:
            self.logger.output_formats.append(self._writer)
        if self.verbose >= 1 and self.path is not None:
            print(f"Training curves: {self.path}")

    def _read_monitors(self) -> None:
        """Add the episodes recorded by the environments' ``Monitor`` wrappers, at roughly the steps of their ends."""
        # A worker of SubprocVecEnv ends if the environment lacks the method, so check first
        if not all(self.training_env.env_is_wrapped(Monitor)):
            return
        returns = self.training_env.env_method("get_episode_rewards")
        lengths = self.training_env.env_method("get_episode_lengths")
        ends = [np.cumsum(env_lengths) * self.training_env.num_envs for env_lengths in lengths]
        columns = (np.concatenate(column) for column in (ends, returns, lengths))
        for end, episode_return, length in sorted(zip(*columns, strict=True), key=lambda episode: episode[0]):
            if end <= self.model.num_timesteps:
                self._add_episode(int(end), episode_return, length)

    def _add_episode(self, steps: int, episode_return: Any, length: Any) -> None:
        self.curves["return"].append((steps, float(episode_return)))
        self.curves["length"].append((steps, float(length)))

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for info, done in zip(infos, self.locals.get("dones", [True] * len(infos)), strict=True):
            if done and info.get("episode") is not None:  # an environment may return the same dict again
                self._add_episode(self.num_timesteps, info["episode"]["r"], info["episode"]["l"])
        return super()._on_step()

    def _on_training_end(self) -> None:
        if self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)
        self._on_interval()

    def _on_interval(self) -> None:
        try:
            self._draw()
        except OSError as error:  # a full disk must not stop training
            warnings.warn(f"the curves could not be drawn to {self.path}: {error}. Training continues without them")

    def _draw(self) -> None:
        self._figure.clear()
        axes = self._figure.subplots(2, 2, sharex=True)
        # Fixed margins: computing the layout would double the drawing time
        self._figure.subplots_adjust(left=0.07, right=0.98, bottom=0.09, top=0.89, wspace=0.16, hspace=0.18)
        self._figure.suptitle(self._describe_run(), fontsize=11)
        for (name, title), panel in zip(_PANELS.items(), axes.flat, strict=True):
            self._draw_panel(panel, name, title)
        for panel in axes[1]:
            panel.set_xlabel("environment steps")
            panel.locator_params(axis="x", nbins=6)
        if self.path is not None:
            with atomic_file(self.path) as file:
                self._figure.savefig(file, format=self._format, dpi=110)
            return
        content = io.BytesIO()
        self._figure.savefig(content, format="png", dpi=80)
        from IPython.display import Image, display

        image = Image(data=content.getvalue(), format="png")
        if self._display is None:
            self._display = display(image, display_id=True)
        else:
            self._display.update(image)

    def _draw_panel(self, panel: Any, name: str, title: str) -> None:
        panel.set_title(title.format(window=self.window), fontsize=10)
        panel.grid(alpha=0.3)
        curve = self.curves[name]
        if not curve:
            message = "no log yet" if name in _LOSSES else "no episode has ended yet"
            panel.text(0.5, 0.5, message, transform=panel.transAxes, ha="center", va="center", color="gray")
            return
        steps, values = np.array(curve).T
        if name in _LOSSES:
            panel.plot(steps, values, marker="." if len(values) < 30 else None, color="C1")
            return
        panel.plot(steps, values, ".", markersize=4, alpha=0.4, color="C0")
        panel.plot(steps, moving_mean(values, self.window), color="C0")


class _LossRecorder(KVWriter):
    """Add the losses that SB3's logger writes to the curves of a callback."""

    def __init__(self, callback: LivePlotCallback) -> None:
        self.callback = callback

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for name in _LOSSES:
            if name in key_values:
                self.callback.curves[name].append((self.callback.model.num_timesteps, float(key_values[name])))

    def close(self) -> None:
        pass


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and the ``window - 1`` values before it; the first means have fewer values."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _in_notebook() -> bool:
    """Return whether a notebook can show figures; IPython in a terminal cannot."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None

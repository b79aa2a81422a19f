"""Four curves, drawn while training runs."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.monitor import Monitor

from ddpg_ext.callbacks.periodic import PeriodicCallback
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra

#: what is drawn, in reading order: where its values come from, and how its axes are titled
_PANELS = {
    "return": "return of an episode, with noise",
    "train/actor_loss": "actor loss",
    "train/critic_loss": "critic loss",
    "length": "length of an episode, in steps",
}

_Curve = list[tuple[int, float]]


class LivePlotCallback(PeriodicCallback):
    """
    Draw return, actor loss, critic loss and episode length over the steps, while training runs: in a notebook, where
    one picture is updated in place, or in a file.

    Returns and lengths are those of the training episodes, as SB3's ``Monitor`` reports them: one point for each
    episode, and the mean of the last ``window``. Losses are what the logger writes as ``train/actor_loss`` and
    ``train/critic_loss``: one point for each log, which is every ``log_interval`` episodes. Any off-policy algorithm
    of SB3 that logs these will do.

    A callback that is passed to a second ``learn(..., reset_num_timesteps=False)`` goes on with its curves. A new one
    on a run that ``DDPGPaper.resume`` goes on with has its earlier episodes, not its earlier losses.

    :param path: file for the picture, written anew at each drawing, and never half-written; the ending says the format
        (".png", ".svg", ".pdf"). None: show it in the notebook
    :param every: environment steps between two drawings, at least 1
    :param window: number of episodes that the mean is of, at least 1
    :param verbose: 1: say where the file is, when training starts
    :raises InvalidArgumentError: without ``path`` where there is no notebook; for a file that cannot be written, or a
        number out of range
    :raises MissingExtraError: without matplotlib
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, every: int = 2_000, window: int = 10, verbose: int = 0
    ) -> None:
        super().__init__(every, verbose)
        check_number("window", window, lambda n: n > 0, "a whole number above 0", integer=True)
        matplotlib = import_extra("matplotlib.figure", "ddpg_ext[extra]", "LivePlotCallback")
        if path is None and not _in_notebook():
            raise InvalidArgumentError("`path` must be the name of a file where there is no notebook, got None")
        self.path = None if path is None else Path(path)
        self.window = window
        #: the curves so far: ``return``, ``length``, ``train/actor_loss`` and ``train/critic_loss``, each a list of
        #: (environment steps, value)
        self.curves: dict[str, _Curve] = {name: [] for name in _PANELS}
        self._figure = matplotlib.Figure(figsize=(10, 6))
        self._writer = _Losses(self)
        self._display: Any = None

    def _init_callback(self) -> None:
        if self.path is not None:
            suffix = self.path.suffix.lstrip(".").lower() or "none"
            supported = self._figure.canvas.get_supported_filetypes()
            if suffix not in supported:
                raise InvalidArgumentError(
                    f"`path` must end in one of {', '.join(f'.{known}' for known in sorted(supported))}, "
                    f"got {str(self.path)!r}"
                )

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.model.num_timesteps == 0:
            self.curves = {name: [] for name in _PANELS}
        elif not self.curves["return"]:
            self._read_monitors()
        try:
            self._draw()
        except OSError as error:
            raise InvalidArgumentError(f"`path` {str(self.path)!r} cannot be written: {error}") from error
        # It is still there where training was interrupted, and the logger is the user's
        if self._writer not in self.logger.output_formats:
            self.logger.output_formats.append(self._writer)
        if self.verbose >= 1 and self.path is not None:
            print(f"Curves of training: {self.path}")

    def _read_monitors(self) -> None:
        """The episodes that the environments remember from before, with the steps at which they ended, about."""
        # Asked first, since a process of SubprocVecEnv ends when it lacks the method
        if not all(self.training_env.env_is_wrapped(Monitor)):
            return
        n_envs = self.training_env.num_envs
        returns = self.training_env.env_method("get_episode_rewards")
        lengths = self.training_env.env_method("get_episode_lengths")
        ends = [np.cumsum(length) * n_envs for length in lengths]
        episodes = [
            (int(end), float(ret), float(length))
            for of_env in zip(ends, returns, lengths, strict=True)
            for end, ret, length in zip(*of_env, strict=True)
        ]
        for end, ret, length in sorted(episodes, key=lambda episode: episode[0]):
            if end <= self.model.num_timesteps:
                self.curves["return"].append((end, ret))
                self.curves["length"].append((end, length))

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            episode = info.get("episode")
            if episode is not None:
                self.curves["return"].append((self.num_timesteps, float(episode["r"])))
                self.curves["length"].append((self.num_timesteps, float(episode["l"])))
        return super()._on_step()

    def _on_training_end(self) -> None:
        if self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)
        self._on_time()

    def _on_time(self) -> None:
        """A full disk is no reason to stop training."""
        try:
            self._draw()
        except OSError as error:
            warnings.warn(f"the curves could not be drawn to {self.path}: {error}. Training goes on")

    def _draw(self) -> None:
        self._figure.clear()
        axes = self._figure.subplots(2, 2, sharex=True)
        # A layout that is computed each time would double the time that drawing takes
        self._figure.subplots_adjust(left=0.07, right=0.98, bottom=0.09, top=0.94, wspace=0.16, hspace=0.18)
        for (name, title), panel in zip(_PANELS.items(), axes.flat, strict=True):
            self._draw_panel(panel, name, title)
        for panel in axes[1]:
            panel.set_xlabel("environment steps")
            panel.locator_params(axis="x", nbins=6)
        if self.path is not None:
            with atomic_file(self.path) as file:
                self._figure.savefig(file, format=self.path.suffix.lstrip(".").lower(), dpi=110)
            return
        picture = io.BytesIO()
        self._figure.savefig(picture, format="png", dpi=80)
        from IPython.display import Image, display

        image = Image(data=picture.getvalue(), format="png")
        if self._display is None:
            self._display = display(image, display_id=True)
        else:
            self._display.update(image)

    def _draw_panel(self, panel: Any, name: str, title: str) -> None:
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        curve = self.curves[name]
        if not curve:
            nothing = "no log yet" if name.startswith("train/") else "no episode has ended yet"
            panel.text(0.5, 0.5, nothing, transform=panel.transAxes, ha="center", va="center", color="gray")
            return
        steps, values = np.array(curve).T
        if name.startswith("train/"):
            panel.plot(steps, values, marker="." if len(values) < 30 else None, color="C1")
            return
        panel.plot(steps, values, ".", markersize=4, alpha=0.4, color="C0")
        panel.plot(steps, moving_mean(values, self.window), color="C0", label=f"mean of {self.window} episodes")
        panel.legend(loc="best", fontsize=8)


class _Losses(KVWriter):
    """
    An output of SB3's logger that hands the losses to the callback.

    :param callback: whose curves they go to
    """

    def __init__(self, callback: LivePlotCallback) -> None:
        self.callback = callback

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for name in ("train/actor_loss", "train/critic_loss"):
            if name in key_values:
                self.callback.curves[name].append((self.callback.model.num_timesteps, float(key_values[name])))

    def close(self) -> None:
        pass


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """
    :param values: shape ``(n,)``
    :param window: at least 1
    :return: at each place the mean of the value and those before it, ``window`` in all or as many as there are
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _in_notebook() -> bool:
    """Whether there is a notebook that can show a picture: IPython in a terminal cannot."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None

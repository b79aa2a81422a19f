"""Films of the agent, as it learns."""

import os
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import Video
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.callbacks.periodic import PeriodicCallback
from ddpg_ext.common.checks import check_flag, check_number
from ddpg_ext.common.video import check_film, film_env, film_episode, frames_per_second, write_film

#: a film for TensorBoard has so many frames at most: it is kept within the event file
_LOGGED_FRAMES = 100


class EpisodeVideoCallback(PeriodicCallback):
    """
    Film an episode without noise every so many steps and at the end of training: ``episode_<steps>_steps.gif``.

    SB3's ``VecVideoRecorder`` films what an environment does anyway, by its own count of steps; this callback plays
    episodes of its own, with the same start each time, so that the films can be compared. A renderer that fails is
    warned of once, and training goes on without films.

    :param env: an id, or an environment with ``render_mode="rgb_array"``, apart from that of the training
    :param path: folder for the films
    :param every: environment steps between two films, at least 1; as ``callback_after_eval`` or
        ``callback_on_new_best`` of an ``EvalCallback``, 1 means with each of its calls
    :param file_format: "gif", or "mp4" (moviepy)
    :param max_steps: where a film ends at the latest, at least 1
    :param seed: of the episodes; None: each starts elsewhere
    :param log: put the films into the log as ``eval/episode``, too (TensorBoard only; needs moviepy below 2)
    :param verbose: 1: print each file
    :raises InvalidArgumentError: for a value out of range, or an environment that gives no pictures or has other spaces
    :raises MissingExtraError: without the package that writes the films
    """

    def __init__(
        self,
        env: gym.Env | VecEnv | str,
        path: str | os.PathLike[str],
        every: int = 10_000,
        file_format: str = "gif",
        max_steps: int = 1_000,
        seed: int | None = 0,
        log: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(every, verbose)
        check_number("max_steps", max_steps, lambda n: n > 0, "a whole number above 0", integer=True)
        check_flag("log", log)
        check_film(f".{file_format}")
        self.env = env
        self.path = Path(path)
        self.file_format = file_format
        self.max_steps = max_steps
        self.seed = seed
        self.log = log
        self._failed = False
        self._last_film = -1

    def _init_callback(self) -> None:
        self.env = film_env(self.model, self.env, training=True)

    def _on_training_end(self) -> None:
        if self._last_film != self.num_timesteps:
            self._on_time()

    def _on_time(self) -> None:
        if self._failed:
            return
        self._last_film = self.num_timesteps
        file = self.path / f"episode_{self.num_timesteps}_steps.{self.file_format}"
        try:
            self._film(file)
        except Exception as error:  # whatever a renderer may raise
            self._failed = True
            warnings.warn(f"no more films, since {file} could not be made: {error!r}. Training goes on")

    def _film(self, file: Path) -> None:
        assert isinstance(self.env, VecEnv)  # since _init_callback
        frames, total = film_episode(self.model, self.env, self.max_steps, self.seed)
        fps = frames_per_second(self.env)
        write_film(frames, fps, file)
        if self.verbose >= 1:
            print(f"Episode after {self.num_timesteps:,} steps, return {total:.1f}: {file}")
        if self.log:
            stride = -(-len(frames) // _LOGGED_FRAMES)
            film = th.as_tensor(np.stack(frames[::stride]).transpose(0, 3, 1, 2)[None])
            others = ("stdout", "log", "json", "csv")
            self.logger.record("eval/episode", Video(film, fps / stride), exclude=others)
            self.logger.dump(self.num_timesteps)

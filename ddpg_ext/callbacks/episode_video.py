"""Videos of the agent while it learns."""

import os
import warnings
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import Video
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.callbacks.periodic import EvaluationCallback
from ddpg_ext.common.checks import check_choice, check_count, check_flag, check_path, check_seed
from ddpg_ext.common.video import check_video_format, record_frames, write_video

#: maximum number of frames of a video for TensorBoard, which stores it inside the event file
_LOGGED_FRAMES = 100


class EpisodeVideoCallback(EvaluationCallback):
    """
    Record an episode without noise at regular intervals and at the end of training.

    The files are named ``episode_<steps>_steps.gif``. SB3's ``VecVideoRecorder`` records training episodes; this
    callback plays its own episodes from the same start each time, so the videos can be compared. If rendering fails,
    a warning is shown once and training continues without videos.

    :param env: an environment id, or an environment with ``render_mode="rgb_array"``; not the training environment
    :param path: folder for the videos
    :param every: environment steps between two videos, at least 1. As ``callback_after_eval`` or
        ``callback_on_new_best`` of an ``EvalCallback``, 1 records at each of its calls
    :param file_format: "gif", or "mp4" (needs moviepy)
    :param max_steps: maximum number of steps in a video, at least 1
    :param seed: seed of all episodes; None: each episode starts differently
    :param log: also log the videos as ``eval/episode`` (TensorBoard only; needs moviepy below 2)
    :param verbose: 1: print the name of each file
    :raises InvalidArgumentError: for a value out of range, or an environment that does not render or has other spaces
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises MissingExtraError: if the package that writes the videos is not installed
    """

    _render_mode = "rgb_array"

    def __init__(
        self,
        env: gym.Env | VecEnv | str,
        path: str | os.PathLike[str],
        every: int = 10_000,
        file_format: Literal["gif", "mp4"] = "gif",
        max_steps: int = 1_000,
        seed: int | None = 0,
        log: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(env, every, verbose)
        self.max_steps = check_count("max_steps", max_steps)
        self.path = Path(check_path("path", path))
        self.file_format = check_choice("file_format", file_format, ("gif", "mp4"))
        check_video_format(f".{self.file_format}")
        self.seed = check_seed(seed)
        self.log = check_flag("log", log)
        self._failed = False

    def _on_training_end(self) -> None:
        if self._last != self.num_timesteps:
            self._on_interval()
        super()._on_training_end()

    def _on_interval(self) -> None:
        if self._failed:
            return
        file = self.path / f"episode_{self.num_timesteps}_steps.{self.file_format}"
        try:
            frames, fps, episode_return = record_frames(self.model, self._vec_env, self.max_steps, self.seed)
            write_video(frames, fps, file)
        except Exception as error:  # a renderer may raise anything
            self._failed = True
            warnings.warn(f"{file} could not be recorded: {error!r}. Training continues without videos")
            return
        if self.verbose >= 1:
            print(f"Episode after {self.num_timesteps:,} steps, return {episode_return:.1f}: {file}")
        if self.log:
            stride = -(-len(frames) // _LOGGED_FRAMES)
            video = Video(th.as_tensor(np.stack(frames[::stride]).transpose(0, 3, 1, 2)[None]), fps / stride)
            self.logger.record("eval/episode", video, exclude=("stdout", "log", "json", "csv"))
            self.logger.dump(self.num_timesteps)

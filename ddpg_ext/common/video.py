"""An episode as a GIF or an MP4 file."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.evaluation import copy_statistics, evaluation_env
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra

#: browsers show no more pictures of a GIF per second with any reliability
_GIF_FPS = 25
#: of the longer side of a GIF, in pixels: they are large files
_GIF_SIZE = 300


def record_episode(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv | str,
    path: str | os.PathLike[str],
    max_steps: int = 1_000,
    seed: int | None = 0,
) -> float:
    """
    Play an episode without noise, and write a film of it: a GIF (in at most 25 frames per second and 300 pixels) or an
    MP4.

    :param model: who acts
    :param env: an id, or an environment with ``render_mode="rgb_array"``; of a ``VecEnv`` the first one is filmed. It
        is normalised by itself where the model's environment is
    :param path: where the film goes, ending in ".gif" (extra ``extra``) or ".mp4" (moviepy, as ``gymnasium[other]`` has
        it)
    :param max_steps: where the film ends at the latest, at least 1
    :param seed: of the episode; None: the environment goes on where it is
    :return: return of the episode, or of the part on film, of rewards that are not normalised
    :raises InvalidArgumentError: for another ending, for an environment that gives no pictures or has other spaces
    :raises MissingExtraError: without the package that writes the file
    """
    file = Path(path)
    check_film(file.suffix)
    check_number("max_steps", max_steps, lambda n: n > 0, "a whole number above 0", integer=True)
    vec_env = film_env(model, env)
    frames, total = film_episode(model, vec_env, max_steps, seed)
    write_film(frames, frames_per_second(vec_env), file)
    if isinstance(env, str):
        vec_env.close()
    return total


def check_film(suffix: str) -> None:
    """
    :param suffix: ending of a file
    :raises InvalidArgumentError: if films do not end so
    :raises MissingExtraError: if the package that writes such films is missing
    """
    if suffix == ".gif":
        import_extra("PIL.Image", "ddpg_ext[extra]", "a GIF")
    elif suffix == ".mp4":
        import_extra("moviepy", "gymnasium[other]", "an MP4")
    else:
        raise InvalidArgumentError(f"a film must end in '.gif' or '.mp4', got {suffix!r}")


def film_env(model: BaseAlgorithm, env: gym.Env | VecEnv | str, training: bool = False) -> VecEnv:
    """
    :param model: who acts
    :param env: as :func:`record_episode` takes it
    :param training: whether this is in the midst of training
    :return: the environments
    :raises InvalidArgumentError: if they give no pictures, or are not for the model
    """
    vec_env = evaluation_env(model, env, render_mode="rgb_array", training=training)
    if vec_env.render_mode != "rgb_array":
        raise InvalidArgumentError(f"`env` must have render_mode='rgb_array', got {vec_env.render_mode!r}")
    return vec_env


def film_episode(
    model: BaseAlgorithm, vec_env: VecEnv, max_steps: int, seed: int | None
) -> tuple[list[np.ndarray], float]:
    """
    :param model: who acts
    :param vec_env: what :func:`film_env` gave
    :param max_steps: how many at most
    :param seed: of the episode, or None
    :return: a picture of each state but the last, shape ``(height, width, 3)``, and the return, not normalised
    """
    copy_statistics(model, vec_env)
    normalize = unwrap_vec_normalize(vec_env)
    frames: list[np.ndarray] = []
    total, over = 0.0, False
    with _not_learning(normalize):
        if seed is not None:
            vec_env.seed(seed)
        obs: Any = vec_env.reset()
        while not over and len(frames) < max_steps:
            frames.append(np.asarray(vec_env.get_images()[0]))
            actions, _ = model.predict(obs, deterministic=True)
            obs, rewards, dones, _ = vec_env.step(actions)
            total += float((rewards if normalize is None else normalize.get_original_reward())[0])
            over = bool(dones[0])  # the environment has been reset: its picture is of the next episode
    return frames, total


@contextmanager
def _not_learning(normalize: VecNormalize | None) -> Iterator[None]:
    """The environment may be the model's own, whose statistics are those of training."""
    if normalize is None:
        yield
        return
    training, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = training


def frames_per_second(vec_env: VecEnv) -> float:
    """
    :param vec_env: environments
    :return: how fast they run, by what they say
    """
    metadata = vec_env.get_attr("metadata", 0)[0] or {}
    return float(metadata.get("render_fps") or 30)


def write_film(frames: list[np.ndarray], fps: float, path: Path) -> None:
    """
    :param frames: pictures of one size, shape ``(height, width, 3)``, uint8
    :param fps: how many make a second
    :param path: a file ending in ".gif" or ".mp4"
    """
    if path.suffix == ".mp4":
        _write_mp4(frames, fps, path)
        return
    image = import_extra("PIL.Image", "ddpg_ext[extra]", "a GIF")
    stride = math.ceil(fps / _GIF_FPS)
    pictures = [image.fromarray(frame) for frame in frames[::stride]]
    for picture in pictures:
        picture.thumbnail((_GIF_SIZE, _GIF_SIZE))
    milliseconds = max(round(1000 * stride / fps), 20)
    with atomic_file(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def _write_mp4(frames: list[np.ndarray], fps: float, path: Path) -> None:
    clips = import_extra("moviepy.video.io.ImageSequenceClip", "gymnasium[other]", "an MP4")
    # The format asks for even sides
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    try:
        clips.ImageSequenceClip(even, fps=fps).write_videofile(str(temporary), codec="libx264", logger=None)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

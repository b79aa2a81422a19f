"""Recording of episodes as GIF or MP4 files."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ddpg_ext.common.checks import check_count, check_path, check_seed
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.evaluation import copy_statistics, evaluating, evaluation_env
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra

#: browsers slow down GIFs with more frames per second
_GIF_FPS = 25
#: maximum length of the longer side of a GIF in pixels, because files of larger images are too large
_GIF_SIZE = 300


def record_episode(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv | str,
    path: str | os.PathLike[str],
    max_steps: int = 1_000,
    seed: int | None = 0,
) -> float:
    """
    Play an episode without noise and write a video of it.

    A GIF has at most 25 frames per second and 300 pixels on its longer side.

    :param model: the model that acts
    :param env: an environment id, or an environment with ``render_mode="rgb_array"``; for a ``VecEnv``, its first
        environment is recorded. It is normalised like the model's environment. The model's own environment, whose
        training episode then ends, is only accepted for a DDPGPaper, outside of callbacks
    :param path: path of the file, which ends in ".gif" (extra ``extra``) or ".mp4" (needs moviepy, which
        ``gymnasium[other]`` installs)
    :param max_steps: maximum number of steps in the video, at least 1
    :param seed: seed of the episode; None: the environment's random numbers continue
    :return: the sum of the rewards in the video, before any normalisation
    :raises InvalidArgumentError: for another file format, for an environment that does not render or has other spaces,
        or for the training environment
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises MissingExtraError: if the package that writes the file is not installed
    """
    file = Path(check_path("path", path))
    check_video_format(file.suffix.lower())
    if file.is_dir():
        raise InvalidArgumentError(f"`path` must be a file, but {file} is a folder")
    max_steps = check_count("max_steps", max_steps)
    seed = check_seed(seed)
    vec_env = evaluation_env(model, env, "rgb_array")
    try:
        frames, fps, episode_return = record_frames(model, vec_env, max_steps, seed)
    finally:
        if isinstance(env, str):
            vec_env.close()
    write_video(frames, fps, file)
    return episode_return


def check_video_format(suffix: str) -> None:
    """Raise an error unless videos with this file name suffix can be written."""
    if suffix == ".gif":
        import_extra("PIL.Image", "ddpg_ext[extra]", "a GIF")
    elif suffix == ".mp4":
        import_extra("moviepy", "gymnasium[other]", "an MP4")
    else:
        raise InvalidArgumentError(f"`path` must end in '.gif' or '.mp4', got the suffix {suffix!r}")


def record_frames(
    model: BaseAlgorithm, vec_env: VecEnv, max_steps: int, seed: int | None
) -> tuple[list[np.ndarray], float, float]:
    """
    Play an episode without noise; return a frame of each state except the last, the frame rate, and the return.

    Frames have the shape ``(height, width, 3)``. Rewards are summed before normalisation. Without a declared frame rate
    it is 30 frames per second.
    """
    copy_statistics(model, vec_env)
    normalize = unwrap_vec_normalize(vec_env)
    frames: list[np.ndarray] = []
    episode_return, done = 0.0, False
    with evaluating(model, vec_env):
        if seed is not None:
            vec_env.seed(seed)
        obs: Any = vec_env.reset()
        while not done and len(frames) < max_steps:
            frames.append(np.array(vec_env.get_images()[0]))  # a copy, because it may be the same array again
            actions, _ = model.predict(obs, deterministic=True)
            obs, rewards, dones, _ = vec_env.step(actions)
            episode_return += float((rewards if normalize is None else normalize.get_original_reward())[0])
            done = bool(dones[0])  # then the environment has been reset, and would render the next episode
    metadata = vec_env.get_attr("metadata", [0])[0] or {}
    return frames, float(metadata.get("render_fps") or 30), episode_return


def write_video(frames: list[np.ndarray], fps: float, path: Path) -> None:
    """Write frames of one size, shape ``(height, width, 3)``, uint8, to a file that ends in ".gif" or ".mp4"."""
    if path.suffix.lower() == ".mp4":
        _write_mp4(frames, fps, path)
        return
    image = import_extra("PIL.Image", "ddpg_ext[extra]", "a GIF")
    stride = math.ceil(fps / _GIF_FPS)
    images = [image.fromarray(frame) for frame in frames[::stride]]
    for frame in images:
        frame.thumbnail((_GIF_SIZE, _GIF_SIZE))
    # One palette for all frames, without dithering, so only moving parts differ between frames
    sample = np.concatenate([np.asarray(frame) for frame in images[:: math.ceil(len(images) / 16)]])
    palette = image.fromarray(sample).quantize(256)
    images = [frame.quantize(palette=palette, dither=image.Dither.NONE) for frame in images]
    milliseconds = max(round(1000 * stride / fps), 20)
    with atomic_file(path) as file:
        images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _write_mp4(frames: list[np.ndarray], fps: float, path: Path) -> None:
    clips = import_extra("moviepy.video.io.ImageSequenceClip", "gymnasium[other]", "an MP4")
    # H.264 requires even sides
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = os.path.join(folder, path.name)
        clips.ImageSequenceClip(even, fps=fps).write_videofile(temporary, codec="libx264", logger=None)
        os.replace(temporary, path)

"""Repeated actions and stacked frames, as in the paper's experiments with pixels (section 4)."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from ddpg_ext.common.checks import check_count, check_number
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.common.optional_imports import import_extra

_RGB = 3


class PixelActionRepeat(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Repeat each action, and observe the stacked frames of all these steps (paper, section 4).

    The observation is uint8 of shape ``(size, size, 3 * repeat)``: red, green and blue of the first repeated step, then
    those of the next, up to the newest. SB3 moves the channels to the front, and its policies divide by 255. After a
    reset, and if an episode ends before the last repetition, copies of the newest frame replace the missing frames.

    Rewards are summed, and the repetition stops with the episode. ``info`` is that of the last step. Frames are
    rendered, unless the environment's observations are RGB images already. They are reduced to squares by averaging
    areas.

    :param env: an environment with ``render_mode="rgb_array"``, or with RGB images as observations
    :param repeat: number of steps of ``env`` per step of the wrapper, at least 1; 3 in the paper
    :param size: height and width of the observation in pixels, above ``3 * repeat``; 64 in the paper
    :raises InvalidArgumentError: for an environment that does not render to arrays, frames smaller than ``size``, or a
        number out of range
    :raises InvalidArgumentTypeError: if ``env`` is not an environment, or a number has the wrong type
    :raises MissingExtraError: if Pillow is not installed (extra ``extra``)
    """

    def __init__(self, env: gym.Env, repeat: int = 3, size: int = 64) -> None:
        image = import_extra("PIL.Image", "ddpg_ext[extra]", "PixelActionRepeat")
        if not isinstance(env, gym.Env):
            raise InvalidArgumentTypeError(
                f"`env` must be a single Gymnasium environment, got {env!r}; wrap each environment of a VecEnv: "
                "make_vec_env(..., wrapper_class=PixelActionRepeat)"
            )
        repeat = check_count("repeat", repeat)
        # SB3 assumes that the channels are the smallest dimension
        accepted = f"a whole number above 3 * repeat = {_RGB * repeat}"
        size = check_number("size", size, lambda n: n > _RGB * repeat, accepted, integer=True)
        gym.utils.RecordConstructorArgs.__init__(self, repeat=repeat, size=size)
        gym.Wrapper.__init__(self, env)
        self.repeat = repeat
        self.size = size
        self._image = image
        shape = env.observation_space.shape or ()
        #: True if the observations are the frames; then nothing is rendered
        self.observes_images = is_image_space(env.observation_space) and shape[2] == _RGB
        if self.observes_images:
            self._check_frame_size(*shape[:2])
        elif env.render_mode != "rgb_array":
            modes = env.metadata.get("render_modes", [])
            advice = 'make it with render_mode="rgb_array"' if "rgb_array" in modes else f"it supports only {modes}"
            raise InvalidArgumentError(
                "`env` must render to arrays, or have RGB images (height, width, 3) of uint8 as observations, got "
                f"render_mode={env.render_mode!r} with {env}; {advice}"
            )
        self.observation_space = spaces.Box(0, 255, (size, size, _RGB * repeat), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the environment
        :param options: passed to the environment
        :return: the first frame, ``repeat`` times, and ``info``
        :raises InvalidArgumentError: if the environment does not render RGB arrays, or frames are smaller than ``size``
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._stack([self._frame(observation)]), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Repeat an action ``repeat`` times, or until the episode ends.

        :param action: action for the environment
        :return: the stacked frames, the sum of the rewards, ``terminated``, ``truncated``, ``info``
        """
        frames: list[np.ndarray] = []
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(np.array(action))  # it may be changed
            frames.append(self._frame(observation))
            total += float(reward)
            if terminated or truncated:
                break
        return self._stack(frames), total, terminated, truncated, info

    def _stack(self, frames: list[np.ndarray]) -> np.ndarray:
        """Stack frames from the oldest to the newest; copies of the newest replace missing ones."""
        return np.concatenate(frames + [frames[-1]] * (self.repeat - len(frames)), axis=-1)

    def _frame(self, observation: Any) -> np.ndarray:
        frame: Any = observation if self.observes_images else self.env.render()
        is_array = isinstance(frame, np.ndarray)
        if not (is_array and frame.ndim == 3 and frame.shape[2] == _RGB and frame.dtype == np.uint8):
            rendered = f"{frame.dtype} of shape {frame.shape}" if is_array else repr(frame)[:80]
            raise InvalidArgumentError(f"`env` must render arrays of uint8 (height, width, 3), got {rendered}")
        self._check_frame_size(*frame.shape[:2])
        if frame.shape[:2] == (self.size, self.size):
            return frame.copy()  # the environment may draw into the same array again
        image = self._image.fromarray(np.ascontiguousarray(frame))
        return np.asarray(image.resize((self.size, self.size), self._image.Resampling.BOX))

    def _check_frame_size(self, height: int, width: int) -> None:
        if min(height, width) < self.size:
            raise InvalidArgumentError(
                f"`size` must be at most {min(height, width)} for frames of {height}x{width} pixels, got {self.size}"
            )

"""What the paper's agent sees: each action repeated, and each of these steps' picture (section 4)."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.common.optional_imports import import_extra

_RGB = 3


class PixelActionRepeat(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Repeats each action, and observes the pictures of all these steps, stacked (paper, section 4).

    The observation is uint8 of shape ``(size, size, 3 * repeat)``: red, green and blue of the first of these steps,
    then those of the next, up to the newest. SB3 brings the channels to the front, and its policies divide by 255.
    After a reset, and where an episode ends before the last repetition, the newest picture fills the rest.

    Rewards are summed, and the repetition stops with the episode. ``info`` is that of the last step.

    Pictures are those that the environment renders, or its observations where these are RGB images already. They are
    reduced to squares by averaging over areas.

    :param env: an environment with ``render_mode="rgb_array"``, or with RGB images as observations
    :param repeat: how many steps of ``env`` one step is, at least 1; the paper has 3
    :param size: height and width of the observation, in pixels; the paper has 64
    :raises InvalidArgumentError: for an environment that does not render to arrays, or pictures smaller than ``size``
    :raises InvalidArgumentTypeError: for something that is no environment, or no number
    :raises MissingExtraError: without Pillow, which the extra ``extra`` installs
    """

    def __init__(self, env: gym.Env, repeat: int = 3, size: int = 64) -> None:
        image = import_extra("PIL.Image", "ddpg_ext[extra]", "PixelActionRepeat")
        if not isinstance(env, gym.Env):
            raise InvalidArgumentTypeError(
                f"`env` must be a single Gymnasium environment, got {env!r}; those of a VecEnv are wrapped one by "
                "one: make_vec_env(..., wrapper_class=PixelActionRepeat)"
            )
        check_number("repeat", repeat, lambda n: n > 0, "a whole number above 0", integer=True)
        # SB3 takes the smallest dimension for the channels
        enough = f"a whole number above 3 * repeat = {_RGB * repeat}"
        check_number("size", size, lambda n: n > _RGB * repeat, enough, integer=True)
        gym.utils.RecordConstructorArgs.__init__(self, repeat=repeat, size=size)
        gym.Wrapper.__init__(self, env)
        self.repeat = repeat
        self.size = size
        self._image = image
        #: whether observations are the pictures, and rendering would make them twice
        self.observes_images = _is_rgb(env.observation_space)
        if self.observes_images:
            self._check_picture_size(*env.observation_space.shape[:2])  # type: ignore[index]
        elif env.render_mode != "rgb_array":
            known = env.metadata.get("render_modes", [])
            raise InvalidArgumentError(
                "`env` must render to arrays, or have RGB images (height, width, 3) of uint8 as observations, got "
                f"render_mode={env.render_mode!r} with {env}; "
                + ('make it with render_mode="rgb_array"' if "rgb_array" in known else f"it only renders to {known}")
            )
        self.observation_space = spaces.Box(0, 255, (size, size, _RGB * repeat), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: of the environment
        :param options: the environment's own
        :return: its first picture, ``repeat`` times, and ``info``
        :raises InvalidArgumentError: if the environment renders no pictures, or too small ones
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._stack([self._picture(observation)]), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Repeat an action.

        :param action: for the environment
        :return: the pictures, the sum of the rewards, whether the episode was terminated and truncated, ``info``
        """
        pictures: list[np.ndarray] = []
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            pictures.append(self._picture(observation))
            total += float(reward)
            if terminated or truncated:
                break
        return self._stack(pictures), total, terminated, truncated, info

    def _stack(self, pictures: list[np.ndarray]) -> np.ndarray:
        """From the oldest to the newest, which stands for those that are missing."""
        return np.concatenate(pictures + [pictures[-1]] * (self.repeat - len(pictures)), axis=-1)

    def _picture(self, observation: Any) -> np.ndarray:
        frame = observation if self.observes_images else self.env.render()
        if not (
            isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == _RGB and frame.dtype == np.uint8
        ):
            what = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else repr(frame)[:80]
            raise InvalidArgumentError(f"`env` must render arrays of uint8 (height, width, 3), got {what}")
        height, width, _ = frame.shape
        self._check_picture_size(height, width)
        if height == width == self.size:
            return frame.copy()  # the environment may draw on its own again
        image = self._image.fromarray(np.ascontiguousarray(frame))
        return np.asarray(image.resize((self.size, self.size), self._image.Resampling.BOX))

    def _check_picture_size(self, height: int, width: int) -> None:
        if min(height, width) < self.size:
            raise InvalidArgumentError(
                f"`size` must be at most {min(height, width)} for pictures of {height}x{width} pixels, got {self.size}"
            )


def _is_rgb(space: spaces.Space) -> bool:
    return is_image_space(space) and space.shape is not None and space.shape[2] == _RGB

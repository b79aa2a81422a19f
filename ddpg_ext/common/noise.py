"""Exploration noise: the Ornstein-Uhlenbeck process of the paper (section 7), and a scale schedule for any noise."""

from __future__ import annotations  # so that the documentation shows ArrayLike, not its definition

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch as th
from numpy.typing import ArrayLike, DTypeLike
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)

from ddpg_ext.common.checks import check_number, plain
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError


class OrnsteinUhlenbeckNoise(ActionNoise):
    r"""
    Generate Ornstein-Uhlenbeck noise, which is correlated in time, for control with inertia (paper, sections 3 and 7).

    Each call advances the process by one step:

    .. math:: x_{t+1} = x_t + \theta (\mu - x_t) \, dt + \sigma \sqrt{dt} \, \mathcal{N}(0, 1)

    Its stationary distribution is Gaussian around ``mean`` with standard deviation
    :math:`\sigma / \sqrt{2\theta - \theta^2 dt}`. Its autocorrelation after k steps is :math:`(1 - \theta dt)^k`.

    The paper gives theta and sigma but not dt. ``dt=1`` is one step of the process per agent step. OpenAI baselines,
    SB3 and many tutorials use ``dt=1e-2``, which has nearly the same standard deviation, but
    changes a hundred times more slowly.

    Unlike SB3's noise, it draws from its own generator, which is part of its (picklable) state, so a run can be resumed
    exactly.

    :param mean: mean of the process, shape ``(action_dim,)`` (for actions scaled to [-1, 1])
    :param sigma: scale of the process, a number or shape ``(action_dim,)``, >= 0
    :param theta: rate of return to the mean, with ``0 < theta * dt < 2`` (so that the process is stationary)
    :param dt: time step, > 0
    :param initial_noise: value after a reset, shape ``(action_dim,)``; None starts at 0, as SB3 does
    :param seed: seed of the private generator; None: ``DDPGPaper`` seeds it from its own seed
    :param dtype: type of the output
    :raises InvalidArgumentError: for a parameter out of range or of the wrong shape
    :raises InvalidArgumentTypeError: for a parameter that is not a number
    """

    def __init__(
        self,
        mean: ArrayLike,
        sigma: ArrayLike = 0.2,
        theta: float = 0.15,
        dt: float = 1.0,
        initial_noise: ArrayLike | None = None,
        seed: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.mean = _numbers("mean", mean)
        self.noise_prev: np.ndarray
        self.sigma = _same_shape("sigma", sigma, self.mean)
        self.theta = float(check_number("theta", theta, lambda x: True, "a number"))  # its range depends on dt
        self.dt = float(check_number("dt", dt, lambda x: 0 < x < np.inf, "a finite number above 0"))
        self.initial_noise = None if initial_noise is None else _same_shape("initial_noise", initial_noise, self.mean)
        self.dtype = _float_dtype(dtype)
        if not (self.sigma >= 0).all():
            raise InvalidArgumentError(f"`sigma` must be at least 0, got {sigma!r}")
        if not 0 < self.theta * self.dt < 2:
            raise InvalidArgumentError(
                f"`theta * dt` must be in (0, 2), got {theta} * {dt}; outside of it the process grows without bound"
            )
        self.set_random_seed(seed)
        self.reset()

    def __call__(self) -> np.ndarray:
        """Advance the process by one step, and return the noise, of ``mean``'s shape."""
        gaussian = self._rng.standard_normal(self.mean.shape)
        self.noise_prev = (
            self.noise_prev
            + self.theta * (self.mean - self.noise_prev) * self.dt
            + self.sigma * math.sqrt(self.dt) * gaussian
        )
        return self.noise_prev.astype(self.dtype)

    def reset(self) -> None:
        """Return to ``initial_noise`` for a new episode. The random stream continues."""
        self.noise_prev = np.zeros_like(self.mean) if self.initial_noise is None else self.initial_noise.copy()

    def set_random_seed(self, seed: int | None) -> None:
        """
        Restart the random stream.

        :param seed: a whole number >= 0; None takes fresh entropy
        :raises InvalidArgumentError: if it is below 0
        :raises InvalidArgumentTypeError: if it is not a whole number
        """
        if seed is not None:
            seed = check_number("seed", seed, lambda n: n >= 0, "a whole number >= 0, or None", integer=True)
        self.seed = seed
        self._rng = np.random.default_rng(seed)

    def spawn(self, n: int) -> list[OrnsteinUhlenbeckNoise]:
        """
        Return independent copies for parallel environments: same parameters, streams that never overlap.

        :param n: number of copies
        :return: the copies; the first call after the same seed always gives the same copies
        """
        copies = [copy.deepcopy(self) for _ in range(n)]
        for noise, rng in zip(copies, self._rng.spawn(n), strict=True):
            noise._rng = rng
        return copies

    def __repr__(self) -> str:
        arguments = (f"{name}={getattr(self, name)}" for name in ("mean", "sigma", "theta", "dt", "seed"))
        return f"OrnsteinUhlenbeckNoise({', '.join(arguments)})"


@dataclass(frozen=True)
class LinearDecay:
    """
    Change linearly from ``start`` to ``end`` over the steps, then stay at ``end``.

    ``LinearDecay(100_000)`` is the linear epsilon decay of many DDPG tutorials: 1 minus 1e-5 per step, never below 0.

    :param n_steps: steps until ``end`` is reached, > 0
    :param start: value at step 0
    :param end: value from step ``n_steps`` on
    :raises InvalidArgumentError: if ``n_steps`` is not above 0, or a number is not finite
    :raises InvalidArgumentTypeError: if an argument is not a number
    """

    n_steps: int
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        n_steps = check_number("n_steps", self.n_steps, lambda n: 0 < n < np.inf, "a finite number above 0")
        start = check_number("start", self.start, lambda x: abs(x) < np.inf, "a finite number")
        end = check_number("end", self.end, lambda x: abs(x) < np.inf, "a finite number")
        self.__dict__.update(n_steps=n_steps, start=start, end=end)  # the dataclass is frozen

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.n_steps, 1.0)


class ScheduledActionNoise(ActionNoise):
    """
    Multiply any action noise by a scale that follows a schedule.

    The schedule is a function of the number of draws, which is the number of steps of its environment (several
    environments have a copy each). A reset does not restart the count.

    :param noise: the noise to scale
    :param schedule: function from the number of steps so far, which starts at 0, to the scale, a finite number >= 0;
        must be picklable if the model is to be saved (:class:`LinearDecay` is)
    :raises InvalidArgumentTypeError: if ``noise`` is not an SB3 ``ActionNoise``, or ``schedule`` is not callable
    """

    def __init__(self, noise: ActionNoise, schedule: Callable[[int], float]) -> None:
        super().__init__()
        if not isinstance(noise, ActionNoise) or isinstance(noise, VectorizedActionNoise):
            raise InvalidArgumentTypeError(f"`noise` must be the ActionNoise of one environment, got {noise!r}")
        if not callable(schedule):
            raise InvalidArgumentTypeError(
                f"`schedule` must be a function of the step, e.g. LinearDecay(100_000), got {schedule!r}"
            )
        self.noise = noise
        self.schedule = schedule
        self.n_steps = 0

    @property
    def scale(self) -> float:
        """
        Return the factor on the next draw.

        :raises InvalidArgumentError: if the schedule gives a negative or non-finite scale
        """
        step = self.n_steps
        try:
            scale = float(self.schedule(step))
        except (TypeError, ValueError, LookupError) as error:
            raise InvalidArgumentError(f"`schedule` must give numbers, but failed at step {step}: {error}") from error
        if not (np.isfinite(scale) and scale >= 0):
            raise InvalidArgumentError(f"`schedule` gave {scale} at step {step}; a noise scale must be finite and >= 0")
        return scale

    def __call__(self) -> np.ndarray:
        scaled = np.asarray(self.noise()) * self.scale
        self.n_steps += 1
        return scaled

    def reset(self) -> None:
        """Reset the wrapped noise for a new episode; the schedule continues."""
        self.noise.reset()

    @property
    def seed(self) -> int | None:
        """Return the seed of the wrapped noise, or None if it has none."""
        return getattr(self.noise, "seed", None)

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed the wrapped noise, if it has its own generator.

        :param seed: a whole number >= 0; None takes fresh entropy
        """
        if hasattr(self.noise, "set_random_seed"):
            self.noise.set_random_seed(seed)

    def spawn(self, n: int) -> list[ScheduledActionNoise]:
        """
        Return copies for parallel environments; they are independent if the wrapped noise has a ``spawn`` method.

        :param n: number of copies
        :return: the copies, each with its own step count
        """
        copies = [copy.copy(self) for _ in range(n)]
        for noise, wrapped in zip(copies, independent_copies(self.noise, n), strict=True):
            noise.noise = wrapped
        return copies

    def __repr__(self) -> str:
        return f"ScheduledActionNoise({self.noise!r}, {self.schedule!r})"


def plain_parameters(noise: ActionNoise) -> None:
    """Convert parameters of SB3's noises that NumPy takes, such as tensors and fractions, to types that files hold."""
    if isinstance(noise, VectorizedActionNoise):
        for part in (noise.base_noise, *noise.noises):
            plain_parameters(part)
    elif isinstance(noise, ScheduledActionNoise):
        plain_parameters(noise.noise)
    elif isinstance(noise, NormalActionNoise | OrnsteinUhlenbeckActionNoise):
        for name, value in vars(noise).items():
            if isinstance(value, str) or value is np.bool_:
                vars(noise)[name] = np.dtype(value)
            elif isinstance(value, th.Tensor | range | list | tuple | np.ndarray):  # also masked arrays and the like
                vars(noise)[name] = np.asarray(value.detach().cpu() if isinstance(value, th.Tensor) else value)
            elif isinstance(value, bool | np.bool_ | Fraction | Decimal):
                vars(noise)[name] = float(value)


def seed_random_stream(noise: ActionNoise | None, seed: int | np.random.SeedSequence) -> None:
    """Seed the generator of a noise of this package without changing its attribute ``seed``, which the user set."""
    if isinstance(noise, VectorizedActionNoise):
        assert isinstance(seed, int)  # for mypy: no noise of several environments is in another
        seed_random_stream(noise.base_noise, seed)
        for part, stream in zip(noise.noises, np.random.SeedSequence(seed).spawn(noise.n_envs), strict=True):
            seed_random_stream(part, stream)
    elif isinstance(noise, ScheduledActionNoise):
        seed_random_stream(noise.noise, seed)
    elif isinstance(noise, OrnsteinUhlenbeckNoise):
        noise._rng = np.random.default_rng(seed)


def independent_copies(noise: ActionNoise, n: int) -> list[Any]:
    """Return one noise per environment, with independent streams if it has ``spawn``, unlike SB3's deep copies."""
    return noise.spawn(n) if hasattr(noise, "spawn") else [copy.deepcopy(noise) for _ in range(n)]


def vectorize(noise: ActionNoise, n_envs: int) -> ActionNoise:
    """Return a noise for ``n_envs`` environments: vectorized if there are several, else the noise of one."""
    if isinstance(noise, VectorizedActionNoise):
        if noise.n_envs == n_envs:
            return noise
        # The schedule of the base noise has not advanced, so use the noise of the first environment
        noise = noise.noises[0]
    if n_envs == 1:
        return noise
    vectorized = VectorizedActionNoise(noise, n_envs)
    vectorized.noises = independent_copies(noise, n_envs)
    return vectorized


def noise_scale(noise: ActionNoise) -> float:
    """Return the current scale of the noise of the first environment; 1 without a schedule."""
    if isinstance(noise, VectorizedActionNoise):
        noise = noise.noises[0]
    return noise.scale if isinstance(noise, ScheduledActionNoise) else 1.0


def _same_shape(name: str, value: ArrayLike, mean: np.ndarray) -> np.ndarray:
    array = _numbers(name, value)
    if array.shape not in ((), mean.shape):
        raise InvalidArgumentError(f"`{name}` must be a number or have the shape of `mean` {mean.shape}, got {value!r}")
    return np.broadcast_to(array, mean.shape).copy()


def _numbers(name: str, value: ArrayLike) -> np.ndarray:
    try:
        array = np.array(plain(value))
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        raise InvalidArgumentTypeError(f"`{name}` must be a number or an array of them, got {value!r}")
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"`{name}` must be finite, got {value!r}")
    return array.astype(np.float64)


def _float_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if result.kind != "f":
        raise InvalidArgumentTypeError(f"`dtype` must be a floating-point type such as np.float32, got {dtype!r}")
    return result

"""A wrapper that makes a new Box2D world at each reset."""

from typing import Any

import gymnasium as gym

from ddpg_ext.common.errors import InvalidArgumentError


class FreshWorld(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Make a new Box2D world at each reset, so that an episode depends on the seed and the actions alone.

    BipedalWalker and CarRacing keep their world after ``reset``. Its remains change the order of contacts, and so the
    rounding in the next episode, so a killed run does not resume bit for bit. LunarLander makes a new world itself.

    :param env: a Box2D environment of Gymnasium, with or without wrappers
    :raises InvalidArgumentError: for other environments
    """

    def __init__(self, env: gym.Env) -> None:
        base: Any = getattr(env, "unwrapped", None)
        if not (type(getattr(base, "world", None)).__name__ == "b2World" and hasattr(base, "_destroy")):
            raise InvalidArgumentError(
                f"`env` must be a Box2D environment such as BipedalWalker or CarRacing, got {env!r}; other "
                "environments do not need FreshWorld"
            )
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode in a new world.

        :param seed: seed of the environment
        :param options: passed to the environment
        :return: the observation and ``info``
        """
        base: Any = self.env.unwrapped
        base._destroy()  # removes the bodies from the old world, so that `reset` has none to destroy
        base.world.contactListener = None
        base.world = type(base.world)(gravity=base.world.gravity)
        return self.env.reset(seed=seed, options=options)

"""What callbacks share that do something every so many steps."""

from stable_baselines3.common.callbacks import BaseCallback

from ddpg_ext.common.checks import check_number


class PeriodicCallback(BaseCallback):
    """
    Calls :meth:`_on_time` whenever the environment steps pass a multiple of ``every``.

    The moments depend on nothing but the steps, so a run that was resumed has those of one that was not interrupted.

    :param every: environment steps (of all environments together) between two calls, at least 1; with 1, each call by
        the parent, such as an ``EvalCallback``
    :param verbose: 0 quiet, 1 info
    :raises InvalidArgumentError: if ``every`` is out of range
    """

    def __init__(self, every: int, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_number("every", every, lambda n: n > 0, "a whole number above 0", integer=True)
        self.every = every
        self._last = 0

    def _on_training_start(self) -> None:
        self._last = self.model.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > self._last // self.every:
            self._last = self.num_timesteps
            self._on_time()
        return True

    def _on_time(self) -> None:
        raise NotImplementedError

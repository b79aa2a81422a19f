"""Prioritised experience replay (Schaul et al., ICLR 2016, https://arxiv.org/abs/1511.05952), proportional variant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import ArrayLike
from stable_baselines3.common.type_aliases import ReplayBufferSamples, TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext.buffers.adapter import as_array, extends_constructor
from ddpg_ext.buffers.packed import PackedReplayBuffer
from ddpg_ext.buffers.sum_tree import SumTree
from ddpg_ext.common.checks import check_equal_arguments, check_number
from ddpg_ext.common.errors import (
    DamagedCheckpointError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
)

#: maximum number of batches that may be drawn before the first priorities come back, while no transitions are added
MAX_UNRETURNED = 10
#: bounds of the leaves of the sum tree, within which neither a leaf nor a sum of leaves becomes 0 or infinite
_MIN_LEAF, _MAX_LEAF = 1e-200, 1e290


class PrioritizedReplayBufferSamples(NamedTuple):
    """Hold the fields of SB3's ``ReplayBufferSamples`` or ``DictReplayBufferSamples``, then weights and indices."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    next_observations: th.Tensor | TensorDict
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    #: importance-sampling weights, shape ``(batch, 1)``; the largest is 1
    weights: th.Tensor
    #: numbers of the transitions for ``update_priorities``, shape ``(batch,)``
    indices: np.ndarray


@extends_constructor
class PrioritizedReplayBuffer(PackedReplayBuffer):
    r"""
    Draw transitions in proportion to their priorities :math:`p_i = (|\delta_i| + \epsilon)^\alpha`.

    :math:`\delta_i` is the TD error when the transition was last drawn. A new transition has the largest priority so
    far, so it is drawn soon. The sum of all priorities is divided into n equal parts, and a minibatch of n has one
    transition from each part (section 3.3 of the paper). It comes with the weights :math:`w_i = (N P(i))^{-\beta}`,
    divided by the largest of the minibatch. They correct the critic's loss for transitions that are drawn too often.

    ``DDPGPaper`` applies the weights to the critic's loss and returns the TD errors. The actor's loss stays unweighted,
    a plain mean over the sampled states. SB3's own algorithms return no priorities. With them, this buffer raises an
    error when a batch is drawn after transitions were added since the last batch.

    The other parameters are those of :class:`~ddpg_ext.buffers.PackedReplayBuffer`; storage, n-step sums, images and
    Dict observations work in the same way. Priorities are always in main memory.

    :param alpha: exponent of the priorities, >= 0; 0 draws uniformly
    :param beta: exponent of the weights, in [0, 1]; or a function of the number of transitions added so far, such as
        ``LinearDecay(100_000, start=0.4, end=1.0)``
    :param eps: number added to the absolute TD error, > 0
    :raises InvalidArgumentError: for an argument out of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    """

    _SNAPSHOT_VALUES = PackedReplayBuffer._SNAPSHOT_VALUES | {"alpha", "max_priority", "n_unreturned"}
    _SNAPSHOT_ARRAYS = PackedReplayBuffer._SNAPSHOT_ARRAYS | {"priorities"}
    _NOT_PICKLED = (*PackedReplayBuffer._NOT_PICKLED, "_tree")

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4,
        eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        self.alpha = check_number("alpha", alpha, lambda x: 0 <= x < np.inf, "a number >= 0")
        if not callable(beta):
            beta = check_number("beta", beta, lambda x: 0 <= x <= 1, "a number in [0, 1] or a function of the step")
        self.beta = beta
        self.eps = check_number("eps", eps, lambda x: 0 < x < np.inf, "a number above 0")
        #: the largest ``|TD error| + eps`` so far, 1 at the beginning
        self.max_priority = 1.0
        super().__init__(*args, **kwargs)

    def _allocate(self) -> None:
        super()._allocate()
        self._tree = SumTree(np.zeros(SumTree.padded(self._ring.end_ids.size)))
        #: number of batches drawn before any priorities came back; None: some came back
        self._n_unreturned: int | None = 0
        #: the ring's ``n_added`` at the last batch
        self._n_added_at_draw = 0
        self._set_max_priority(self.max_priority)

    def _leaves(self, priorities: np.ndarray | float) -> np.ndarray:
        """Return the leaves of the sum tree for these priorities: the values in proportion to which it draws."""
        with np.errstate(over="ignore"):
            leaves = np.asarray(priorities, np.float64) ** self.alpha
        return np.minimum(np.maximum(leaves, _MIN_LEAF), _MAX_LEAF)

    def _set_max_priority(self, max_priority: float) -> None:
        self.max_priority = max_priority
        self._new_leaf = float(self._leaves(max_priority))

    def reset(self) -> None:
        """Forget all transitions and their priorities. The random stream continues."""
        super().reset()
        self._set_max_priority(1.0)
        self._tree = SumTree(np.zeros_like(self._tree.leaves))

    def _write_staged(self, episode_ends: np.ndarray | None, continues: bool, pending: bytes) -> None:
        # In this order, even after an interrupt a row without a transition has no priority
        heads = self._ring.next_heads()
        leaves = self._tree.leaves[heads]
        self._tree.set(heads, 0.0)
        try:
            super()._write_staged(episode_ends, continues, pending)
        except ReplayBufferError:  # nothing was overwritten
            self._tree.set(heads, leaves)
            raise
        self._tree.set(self._ring.newest_rows(), self._new_leaf)

    def sample(  # type: ignore[override] # SB3's type has no fields for weights and indices
        self, batch_size: int, env: VecNormalize | None = None
    ) -> PrioritizedReplayBufferSamples:
        """
        Draw transitions in proportion to their priorities.

        :param batch_size: number of transitions, > 0
        :param env: ``VecNormalize`` whose statistics normalise observations and rewards
        :return: the minibatch with weights and indices, in new memory
        :raises InvalidArgumentError: if ``batch_size`` is not above 0, or ``beta`` is a function and returns a number
            outside [0, 1]
        :raises InvalidArgumentTypeError: if one of the two is not a number
        :raises ReplayBufferError: if the buffer is empty, or priorities never come back
        """
        self._check_draw(batch_size)
        self._count_unreturned()
        beta = self.beta
        if callable(beta):
            n_added = self._ring.n_added * self.n_envs
            try:
                beta = beta(n_added)
            except Exception as error:  # of the user's function
                raise InvalidArgumentError(
                    f"`beta` must be a number, or a function of the number of transitions: {error!r}"
                ) from error
            beta = check_number(f"beta({n_added})", beta, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        rows = self._draw(batch_size)
        leaves = self._tree.leaves[rows]
        # The largest weight is that of the smallest probability; N and the sum of all leaves cancel out
        weights = ((leaves.min() / leaves) ** beta).astype(np.float32)[:, None]
        batch: ReplayBufferSamples = self._make_batch(rows, env)
        return PrioritizedReplayBufferSamples(*batch, th.from_numpy(weights).to(self.device), rows)

    def _draw(self, batch_size: int) -> np.ndarray:
        total = self._tree.total
        if total == 0:  # an interrupt separated the first transition from its priority
            self._tree.set(self._stored_rows(), self._new_leaf)
            total = self._tree.total
        return self._tree.find((np.arange(batch_size) + self._rng.random(batch_size)) * (total / batch_size))

    def _count_unreturned(self) -> None:
        """Count batches until priorities come back, and raise a ``ReplayBufferError`` once that is overdue."""
        if self._n_unreturned is None:
            return
        n_added = self._ring.n_added
        was_added = self._n_unreturned > 0 and n_added > self._n_added_at_draw
        if was_added or self._n_unreturned >= MAX_UNRETURNED:
            raise ReplayBufferError(
                f"{self._n_unreturned} batches were drawn, but no priorities came back. Use PrioritizedReplayBuffer "
                "with DDPGPaper, which returns them; your own algorithm must call "
                "`update_priorities(batch.indices, td_errors)` after each gradient step. To draw batches only to look "
                "at them, call `update_priorities([], [])` once before"
            )
        self._n_unreturned += 1
        self._n_added_at_draw = n_added

    def update_priorities(self, indices: ArrayLike, td_errors: th.Tensor | ArrayLike) -> None:
        """
        Set priorities by the TD errors of a gradient step.

        :param indices: ``indices`` of the minibatch, shape ``(batch,)``
        :param td_errors: one TD error for each index, of any sign
        :raises InvalidArgumentError: if there are not as many errors as indices, or an index is not that of a batch
        :raises InvalidArgumentTypeError: if indices are not whole numbers, or errors are not numbers
        :raises NonFiniteError: for NaN or infinite errors; the priorities stay as they were
        """
        if isinstance(td_errors, th.Tensor):
            td_errors = td_errors.detach().cpu().numpy()
        try:
            errors = np.abs(np.asarray(td_errors, dtype=np.float64)).ravel()
        except (ValueError, TypeError) as error:
            raise InvalidArgumentTypeError(f"`td_errors` must be numbers: {error}") from None
        rows = _as_indices(indices)
        if len(errors) != len(rows):
            raise InvalidArgumentError(f"`td_errors` must hold {len(rows)} numbers, got {len(errors)}")
        try:
            is_stored = self._tree.leaves[rows] > 0  # a drawn transition may have been overwritten since
        except IndexError:
            raise InvalidArgumentError(f"`indices` must be those of a batch, got {rows}") from None
        largest = float(errors.max(initial=0.0)) + self.eps
        if not np.isfinite(largest):
            raise NonFiniteError("`td_errors` must be finite; the priorities were not changed")
        self._n_unreturned = None
        priorities = errors + self.eps
        if largest > self.max_priority:
            self._set_max_priority(largest)
        if np.count_nonzero(is_stored) < len(rows):
            rows, priorities = rows[is_stored], priorities[is_stored]
        self._tree.set(rows, self._leaves(priorities))

    def snapshot_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # documented in the parent
        values, arrays = super().snapshot_state()
        values |= {"alpha": self.alpha, "max_priority": self.max_priority, "n_unreturned": self._n_unreturned}
        return values, {**arrays, "priorities": self._tree.leaves[self._stored_rows()]}

    def _stored_rows(self) -> np.ndarray:
        return self._ring.nth(np.arange(self._ring.n_stored * self.n_envs))

    def load_snapshot_state(self, values: dict[str, Any], arrays: dict[str, Any]) -> None:  # documented in the parent
        self._check_parts(values, arrays)
        check_equal_arguments(self, values, "alpha")
        max_priority, n_unreturned = values["max_priority"], values["n_unreturned"]
        is_priority = isinstance(max_priority, float) and 0 < max_priority < np.inf
        if not (is_priority and type(n_unreturned) in (int, type(None))):
            raise DamagedCheckpointError(f"its largest priority is {str(max_priority)[:60]}")
        priorities = np.empty(arrays["priorities"].shape, np.float64)
        arrays["priorities"].read_into(priorities)
        if not (np.isfinite(priorities).all() and (priorities >= 0).all()):
            raise DamagedCheckpointError("its priorities are not finite and >= 0")
        super().load_snapshot_state(values, arrays)
        rows = self._stored_rows()
        if priorities.shape != rows.shape:
            self.reset()
            raise DamagedCheckpointError(f"it has {len(priorities)} priorities for {len(rows)} transitions")
        self._set_max_priority(max_priority)
        priorities[priorities == 0] = self._new_leaf
        leaves = np.zeros_like(self._tree.leaves)
        leaves[rows] = np.clip(priorities, _MIN_LEAF, _MAX_LEAF)
        self._tree = SumTree(leaves)
        self._n_unreturned, self._n_added_at_draw = n_unreturned, self._ring.n_added


def _as_indices(indices: ArrayLike) -> np.ndarray:
    """Return the indices of a batch as an int64 array of shape ``(n,)``, each >= 0."""
    array = as_array("indices", indices)
    if array.size and array.dtype.kind not in "iu":
        raise InvalidArgumentTypeError(f"`indices` must be those of a batch, whole numbers, got {indices!r}")
    rows = array.astype(np.int64, copy=False)
    if rows.ndim != 1 or rows.min(initial=0) < 0:
        raise InvalidArgumentError(f"`indices` must be those of a batch, in one dimension, got {indices!r}")
    return rows

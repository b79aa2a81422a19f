"""The witness of a snapshot: hashes of the following steps, with which a resumed run compares its own steps."""

import contextlib
import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from ddpg_ext.common.errors import CheckpointError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.serialization.archive import open_regular_file

#: the variables of SB3's `collect_rollouts` that a resumed run has to repeat
_STEP = ("actions", "new_obs", "rewards", "dones")


def checksum(value: Any, crc: int = 0) -> int:
    """Continue a CRC-32 with an array, a number, or a dict of them, sorted by key."""
    if isinstance(value, dict):
        for key in sorted(value):
            crc = checksum(value[key], crc)
        return crc
    array = np.ascontiguousarray(value)
    return zlib.crc32(np.asarray(array, np.float64 if array.dtype.hasobject else None).data, crc)


def tensor_array(tensor: th.Tensor) -> np.ndarray:
    """Return the values of a tensor, or its bytes if NumPy has no such type."""
    tensor = tensor.detach().cpu().contiguous()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and smaller types
        return tensor.reshape(-1).view(th.uint8).numpy()


def witness_file(snapshot: Path) -> Path:
    """Return the path of the witness beside a snapshot."""
    return snapshot.with_suffix(".json")


class Witness:
    """
    Record the steps that follow a snapshot, or compare them with recorded ones.

    Steps 1, 2, 4, 8, ... have a hash of all steps so far. The file is written again at each of them, until the
    snapshot is deleted, so a kill loses less than half of the steps. With ``resumed``, the steps are compared with the
    file, if it belongs to a snapshot with this training state.
    """

    def __init__(self, snapshot: Path, state: bytes, resumed: bool) -> None:
        self.snapshot = snapshot
        self._id = zlib.crc32(state)
        self._expected = self._read() if resumed else None
        self._hashes: list[int] = []
        self._crc = self._n_steps = 0

    def add(self, step: Mapping[str, Any], model: BaseAlgorithm) -> bool:
        """Add a step from the local variables of ``collect_rollouts``; return whether the witness needs more steps."""
        if self._expected is not None and len(self._hashes) == len(self._expected):
            return False
        crc = checksum({name: step[name] for name in _STEP})
        self._crc = zlib.crc32(crc.to_bytes(4, "little"), self._crc)
        self._n_steps += 1
        if self._n_steps & (self._n_steps - 1):
            return True
        state = model.policy.state_dict().items()
        weights = {name: tensor_array(value) for name, value in state if isinstance(value, th.Tensor)}
        self._crc = checksum(weights, self._crc)
        self._hashes.append(self._crc)
        if self._expected is None:
            if not self.snapshot.exists():
                return False
            # A full disk must not end the run, because the run does not need the witness
            with contextlib.suppress(OSError), atomic_file(witness_file(self.snapshot)) as file:
                file.write(json.dumps({"snapshot": self._id, "hashes": self._hashes}).encode())
            return True
        if self._crc == self._expected[len(self._hashes) - 1]:
            return True
        warnings.warn(
            f"{self.snapshot}: the resumed run differs from the run that wrote this snapshot, within {self._n_steps} "
            "steps after it. It continues, but not bit for bit as if it had never stopped. Usual causes: the "
            "environment keeps state after `reset` (put ddpg_ext.envs.FreshWorld around BipedalWalker and CarRacing; "
            "let your own `reset` depend on generators alone); it draws from generators outside of its attributes "
            "(SnapshotCallback(reset=True) helps if `reset` seeds them); or the machine, versions, number of threads, "
            "device, executor or settings have changed. See 'Stop and continue' in the documentation",
        )
        return False

    def _read(self) -> list[int]:
        """Return the hashes in the file, or no hashes if it is missing, damaged or of another snapshot."""
        try:
            with open_regular_file(witness_file(self.snapshot)) as file:
                content = json.loads(file.read(10_000))
            return list(content["hashes"]) if content["snapshot"] == self._id else []
        except (CheckpointError, OSError, ValueError, TypeError, KeyError, RecursionError):
            return []

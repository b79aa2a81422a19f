"""Memory for the arrays of a :class:`~ddpg_ext.buffers.PackedReplayBuffer`: main memory, device memory, or files."""

import math
import mmap
import os
import tempfile
import warnings
from typing import IO

import numpy as np
import torch as th

from ddpg_ext.common.errors import ReplayBufferError

_ADVICE = (
    "lower `buffer_size`, or keep the replay buffer in scratch files: PackedReplayBuffer with "
    "`replay_buffer_kwargs=dict(storage='memmap', directory=...)`"
)


class Memory:
    """Keep arrays in main memory or in device memory."""

    def __init__(self, device: th.device | str = "cpu") -> None:
        self.device = th.device(device)
        self._n_bytes: dict[str, int] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> th.Tensor:
        """Return a new tensor of zeros; a later call with the same name replaces it with a larger one."""
        self._n_bytes[name] = n_bytes = math.prod(shape) * dtype.itemsize
        try:
            if self.device.type != "cpu":
                return th.zeros(shape, dtype=th.from_numpy(np.empty(0, dtype)).dtype, device=self.device)
            # NumPy's zeros take no memory until they are written to; torch's do
            return th.from_numpy(np.zeros(shape, dtype))
        except (MemoryError, ValueError, th.OutOfMemoryError):  # ValueError: more bytes than the address space
            raise ReplayBufferError(f"the replay buffer needs {n_bytes / 1e9:.1f} GB of memory; {_ADVICE}") from None

    def warn_if_too_large(self) -> None:
        """Warn if the full arrays will not fit into main memory."""
        if self.device.type != "cpu":
            return
        try:
            import psutil  # type: ignore[import-untyped]
        except ImportError:  # optional, as in SB3
            return
        needed, available = sum(self._n_bytes.values()), psutil.virtual_memory().available
        if needed > available:
            warnings.warn(
                f"a full replay buffer will need {needed / 1e9:.2f} GB of memory, and {available / 1e9:.2f} GB are "
                f"available; {_ADVICE}"
            )

    def reserve(self, name: str, start: int, stop: int) -> None:
        """Reserve room on the disk for the bytes from ``start`` to ``stop`` of an array."""

    def account_io(self, n_bytes: int) -> None:
        """Count bytes that were read or written, and release mapped pages when there are many."""

    def check_process(self) -> None:
        """Raise a ``ReplayBufferError`` in a forked process, because the arrays belong to its parent."""


class ScratchFiles(Memory):
    """Keep arrays in sparse temporary files without names, mapped into memory; they disappear with this process."""

    #: resident memory of mapped files after which it is released, in bytes
    MAX_RESIDENT = 512 * 2**20

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory
        self._files: dict[str, IO[bytes]] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._resident = 0
        self._pid = os.getpid()

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> th.Tensor:  # documented in the parent
        n_bytes = math.prod(shape) * dtype.itemsize
        try:
            if name not in self._files:
                os.makedirs(self._directory, exist_ok=True)
                # Stays open as long as the buffer exists
                self._files[name] = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            self._files[name].truncate(n_bytes)
            self._maps[name] = mmap.mmap(self._files[name].fileno(), n_bytes)
        except (OSError, OverflowError) as error:
            raise ReplayBufferError(
                f"`directory` {self._directory} cannot be written, or cannot hold a file of {n_bytes / 1e9:.1f} GB "
                f"({error}); choose another folder, or lower `buffer_size`"
            ) from error
        return th.from_numpy(np.frombuffer(self._maps[name], dtype).reshape(shape))

    def warn_if_too_large(self) -> None:  # documented in the parent; the files are on the disk
        pass

    def reserve(self, name: str, start: int, stop: int) -> None:  # documented in the parent
        # On a full disk, writing to a mapped page kills the process (SIGBUS), so reserve room first
        file = self._files[name]
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), start, stop - start)
            else:  # rewrite the present content
                file.seek(start)
                content = file.read(stop - start)
                file.seek(start)
                while content:  # an unbuffered file may write a part
                    content = content[file.write(content) :]
        except OSError as error:
            raise ReplayBufferError(
                f"`directory` {self._directory} has no room for {(stop - start) / 2**20:.1f} MiB more: {error}. The "
                "transition was not stored; those before it are unharmed. Free some room, or lower `buffer_size`"
            ) from error

    def account_io(self, n_bytes: int) -> None:  # documented in the parent
        self._resident += n_bytes
        if self._resident > self.MAX_RESIDENT:
            self._resident = 0
            for mapped in self._maps.values():
                if hasattr(mapped, "madvise"):  # the content stays in the system's file cache or on the disk
                    mapped.madvise(mmap.MADV_DONTNEED)

    def check_process(self) -> None:  # documented in the parent
        if os.getpid() != self._pid:
            raise ReplayBufferError(
                "the scratch files of a replay buffer belong to the process that made it, but this is a child process; "
                "make a replay buffer in this process, or use storage='memory'"
            )

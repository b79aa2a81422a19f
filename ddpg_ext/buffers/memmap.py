"""Where the arrays of a :class:`~ddpg_ext.buffers.PackedReplayBuffer` live: in memory, on a device, or in files."""

import hashlib
import json
import math
import mmap
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar
from weakref import ReferenceType, WeakValueDictionary

import numpy as np
import torch as th
from gymnasium import spaces

from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, ReplayBufferError
from ddpg_ext.common.files import atomic_file

try:
    import fcntl
except ImportError:  # Windows: two processes in one directory go unnoticed there
    fcntl = None  # type: ignore[assignment]


#: in layout.json: whether all files were made
_COMPLETE = "complete"


def describe_space(space: spaces.Space) -> str:
    """
    :param space: a space whose samples are arrays
    :return: the space in words, with a checksum of all its numbers, which NumPy's words abbreviate and round
    """
    numbers = [getattr(space, name) for name in ("low", "high", "nvec", "start") if hasattr(space, name)]
    checksum = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in numbers)).hexdigest()[:16]
    return f"{str(space)[:300]}, {space.dtype}{list(space.shape or ())}, checksum {checksum}"


def absolute_path(directory: Any) -> str:
    """
    :param directory: a path as text, bytes or ``os.PathLike``
    :return: the same from the root on, as text
    :raises InvalidArgumentTypeError: if it is no path
    :raises InvalidArgumentError: if no file system could have it
    """
    try:
        path = os.fsdecode(directory)
        is_possible = path != "" and b"\0" not in os.fsencode(path)
    except TypeError:
        raise InvalidArgumentTypeError(f"`directory` must be a path, got {directory!r}") from None
    except ValueError:  # lone surrogates
        is_possible = False
    if not is_possible:
        raise InvalidArgumentError(f"`directory` must be a path that the system can have, got {directory!r}")
    return os.path.abspath(path)


class MemoryStorage:
    """
    Arrays in memory, the computer's or a device's.

    :param device: where
    """

    #: bytes that are reserved at once, where rows have to be
    RESERVED_AT_ONCE = 32 * 2**20

    def __init__(self, device: th.device | str = "cpu") -> None:
        self.device = th.device(device)
        #: whether arrays survive the process
        self.is_persistent = False
        #: whether there are arrays from before
        self.is_complete = False
        #: whose arrays they are: the latest who asked for them. Not a reference that keeps them, and all memory, alive
        self.user: ReferenceType[Any] | None = None
        self._n_bytes = 0

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype, grows: bool = False) -> th.Tensor:
        """
        :param name: what it holds
        :param shape: its shape
        :param dtype: its type
        :param grows: whether it may be larger than an earlier one of that name, whose content it then starts with where
            arrays persist
        :return: a tensor, of zeros where nothing was written
        :raises ReplayBufferError: if there is not enough memory, or a file is missing or of another size
        """
        n_bytes = math.prod(shape) * dtype.itemsize
        self._n_bytes += n_bytes
        try:
            # NumPy's zeros take no memory until they are written to; torch's do
            return th.from_numpy(np.zeros(shape, dtype)).to(self.device)
        except MemoryError:
            raise ReplayBufferError(
                f"the replay buffer needs {n_bytes / 1e9:.1f} GB of memory; lower `buffer_size`, or keep it in files: "
                "PackedReplayBuffer with `replay_buffer_kwargs=dict(storage='memmap', directory=...)`"
            ) from None

    def rows_there(self, name: str, row_bytes: int, at_least: int) -> int:
        """
        :param name: of an array that grows
        :param row_bytes: bytes of one of its rows
        :param at_least: how many rows it has in the beginning
        :return: how many it has
        :raises ReplayBufferError: if its file is missing, or of a size that it cannot have
        """
        return at_least

    def host_array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As :meth:`tensor`, but in the computer's memory whatever the device, and with all its bytes reserved."""
        array = np.zeros(shape, dtype)
        self._n_bytes += array.nbytes
        return array

    def reserve(self, name: str, start: int, stop: int) -> None:
        """
        Make sure that bytes can be written.

        :param name: of the array
        :param start: first byte
        :param stop: last byte + 1
        :raises ReplayBufferError: if there is no room
        """

    def touched(self, n_bytes: int) -> None:
        """
        :param n_bytes: how many bytes were read or written since the last call, roughly
        """

    def flush(self) -> None:
        """Bring what was written to the disk."""

    def finish(self) -> None:
        """Note that all arrays are there, and hold what they should. Warn if they will not fit when they are full."""
        if self.device.type != "cpu":
            return
        try:
            import psutil  # type: ignore[import-untyped]
        except ImportError:  # as for SB3, it is optional
            return
        available = psutil.virtual_memory().available
        if self._n_bytes > available:
            warnings.warn(
                f"a full replay buffer will need {self._n_bytes / 1e9:.2f} GB of memory, and {available / 1e9:.2f} GB "
                "are available; lower `buffer_size`, or keep it in files: PackedReplayBuffer with "
                "`replay_buffer_kwargs=dict(storage='memmap', directory=...)`"
            )

    def damage(self, name: str, what: str) -> ReplayBufferError:
        """
        :param name: of an array
        :param what: what is wrong with it
        :return: the error to raise
        """
        return ReplayBufferError(f"the replay buffer's array {name} is damaged: {what}")


class MemmapStorage(MemoryStorage):
    """
    Arrays in the files of a directory, mapped into memory.

    The files are sparse: they take as much of the disk as was written. They survive the process, even if it is
    killed; :meth:`flush` brings them through a power failure, too. A directory belongs to one process at a time.

    ``layout.json`` says what the files are for, and whether all of them were made: a directory whose making was
    interrupted is made anew, and one that was complete must have all its files, each of its size.

    :param directory: made if it does not exist
    :param layout: what the files must have in common with a buffer to hold its transitions
    :raises ReplayBufferError: if the directory cannot be written, is in use, is damaged, or was made for another layout
    """

    #: resident memory that mapped files may take before it is given back, in bytes
    MAX_RESIDENT = 512 * 2**20
    _open: ClassVar["WeakValueDictionary[Path, MemmapStorage]"] = WeakValueDictionary()

    def __init__(self, directory: Path, layout: dict[str, Any]) -> None:
        super().__init__()
        self.is_persistent = True
        self.directory = directory
        self._maps: dict[str, mmap.mmap] = {}
        self._resident = 0
        self._pid = os.getpid()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = open(directory / "lock", "ab")  # noqa: SIM115 # held as long as the storage
        except OSError as error:
            raise ReplayBufferError(f"the directory {directory} cannot be written: {error}") from error
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise ReplayBufferError(f"the directory {directory} is in use by another process") from None
        self._check_layout(layout, is_mine=fcntl is not None)

    @classmethod
    def at(cls, directory: str | os.PathLike[str], layout: dict[str, Any]) -> "MemmapStorage":
        """
        :param directory: where
        :param layout: see the class
        :return: the storage of that directory: the one that this process has open, or a new one
        """
        path = Path(directory).resolve()
        storage = cls._open.get(path)
        if storage is None:
            storage = cls._open[path] = cls(path, layout)
        storage._check_layout(layout)
        return storage

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            # A forked child has the same lock, and would keep it; but it must not give away its parent's
            if fcntl is not None and self._pid == os.getpid() and not self._lock.closed:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    def __str__(self) -> str:
        return f"the directory {self.directory}"

    def _check_layout(self, layout: dict[str, Any], is_mine: bool = False) -> None:
        """
        :param layout: see the class
        :param is_mine: whether nobody else can be making files there at this moment
        """
        file = self.directory / "layout.json"
        if not file.exists():
            if any(self.directory.glob("*.bin")):
                raise ReplayBufferError(
                    f"the directory {self.directory} holds files, but no replay buffer's layout.json"
                )
            self._write_layout({**layout, _COMPLETE: False})
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            different = [key for key in layout if there.get(key) != layout[key]]
        except (ValueError, AttributeError, RecursionError, OSError) as error:
            raise ReplayBufferError(f"{file} is damaged: {error}") from None
        if different and is_mine and there.get(_COMPLETE) is False:
            there = {**layout, _COMPLETE: False}  # of a making that failed
            self._write_layout(there)
        elif different:
            what = ", ".join(f"{key} {there.get(key)!r} instead of {layout[key]!r}" for key in different)
            raise ReplayBufferError(f"the directory {self.directory} holds another replay buffer: {what}")
        self._layout, self.is_complete = there, there.get(_COMPLETE) is True

    def _write_layout(self, layout: dict[str, Any]) -> None:
        try:
            with atomic_file(self.directory / "layout.json") as file:
                file.write(json.dumps(layout, indent=2).encode() + b"\n")
        except OSError as error:
            raise ReplayBufferError(f"the directory {self.directory} cannot be written: {error}") from error

    def finish(self) -> None:
        if not self.is_complete:
            self._layout[_COMPLETE] = True
            self._write_layout(self._layout)
            self.is_complete = True

    def damage(self, name: str, what: str) -> ReplayBufferError:
        return ReplayBufferError(
            f"{self._path(name)} is damaged: {what}. Nothing was changed; to start with an empty replay buffer, delete "
            f"the directory {self.directory}"
        )

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype, grows: bool = False) -> th.Tensor:
        path, n_bytes = self._path(name), int(np.prod(shape)) * dtype.itemsize
        if self.is_complete and not grows and self._size(name) != n_bytes:
            raise self.damage(name, f"it has {self._size(name):,} bytes instead of {n_bytes:,}")
        try:
            with open(path, "r+b" if path.exists() else "w+b") as file:
                if path.stat().st_size != n_bytes:
                    file.truncate(n_bytes)
                self._maps[name] = mmap.mmap(file.fileno(), n_bytes)
        except OSError as error:
            raise ReplayBufferError(f"{path} cannot be written: {error}") from error
        return th.from_numpy(np.frombuffer(self._maps[name], dtype).reshape(shape))

    def rows_there(self, name: str, row_bytes: int, at_least: int) -> int:
        if not self.is_complete:
            return at_least
        n_rows, rest = divmod(self._size(name), row_bytes)
        if rest or n_rows < at_least:
            raise self.damage(
                name,
                f"it has {self._size(name):,} bytes instead of {at_least * row_bytes:,}, or more, in steps of "
                f"{row_bytes:,}",
            )
        return n_rows

    def _size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise self.damage(name, f"it cannot be opened: {error.strerror}") from None

    def host_array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array = self.tensor(name, shape, dtype).numpy()
        self.reserve(name, 0, array.nbytes)
        return array

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.bin"

    def reserve(self, name: str, start: int, stop: int) -> None:
        # Writing to a mapped page for which the disk has no room kills the process, so ask for room first
        try:
            with open(self._path(name), "r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), start, stop - start)
                else:  # rewrite what is there
                    file.seek(start)
                    content = file.read(stop - start)
                    file.seek(start)
                    file.write(content)
        except OSError as error:
            raise ReplayBufferError(
                f"no room for {(stop - start) / 2**20:.1f} MiB more in {self._path(name)}: {error}. The transition was "
                "not stored; those before it are unharmed"
            ) from error

    def touched(self, n_bytes: int) -> None:
        self._resident += n_bytes
        if self._resident > self.MAX_RESIDENT:
            self.release()

    def release(self) -> None:
        """Give back the memory that mapped pages take. Their content is kept by the system's page cache or the disk."""
        self._resident = 0
        for mapped in self._maps.values():
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def flush(self) -> None:
        for mapped in self._maps.values():
            mapped.flush()

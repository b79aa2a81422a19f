"""Zip files, which are written atomically, and checked before anything is read from them."""

import contextlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np

from ddpg_ext._version import __version__
from ddpg_ext.common.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from ddpg_ext.common.files import atomic_file

#: member that names the kind of the file and the version of its format
FORMAT = "ddpg_ext.json"
FORMAT_VERSION = 2
MAX_MEMBERS = 10_000
#: members of text or pickles may have this size in bytes, or the size of the file if that is larger
MIN_TEXT = 8 * 2**20
#: a file may unpack to this size in bytes, or to `MAX_RATIO` times its own size if that is larger
MIN_UNPACKED = 64 * 2**20
MAX_RATIO = 20
_CHUNK = 2**20
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, OSError, OverflowError),
)


#: called with the size of each piece that is read or written, so that a memory-mapped array can release its pages
AccountIO = Callable[[int], object]


def ignore_io(n_bytes: int) -> None:
    """Count nothing."""


def _memory_of(data: Any) -> Iterator[memoryview]:
    """Yield the bytes of an array in the order of its elements, in contiguous pieces."""
    if isinstance(data, np.ndarray) and data.ndim > 1 and not data.flags.c_contiguous:
        for part in data:
            yield from _memory_of(part)
        return
    view = memoryview(data)
    # An empty array cannot be cast, but has nothing to write
    yield view.cast("B") if view.nbytes else memoryview(b"")


class ZipWriter(zipfile.ZipFile):
    """Write uncompressed members into a zip file."""

    def add(self, name: str, data: Any, account_io: AccountIO = ignore_io) -> None:
        """Write bytes or an array as a member, without a second copy in memory."""
        # The default date of a ZipInfo is constant, so that equal content gives equal files
        with self.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
            for view in _memory_of(data):
                for start in range(0, len(view), _CHUNK):
                    account_io(member.write(view[start : start + _CHUNK]))


@contextlib.contextmanager
def write_zip(path: Any, kind: str) -> Iterator[ZipWriter]:
    """
    Write a zip file of a kind: "model", "replay buffer" or "snapshot". After an error, an old file is unchanged.

    ``path`` may be an open binary file, which is not written atomically.
    """
    with contextlib.nullcontext(path) if hasattr(path, "write") else atomic_file(Path(path)) as file:
        archive = ZipWriter(cast(BinaryIO, file), "w")
        try:
            archive.add(FORMAT, json.dumps({"kind": kind, "format": FORMAT_VERSION, "ddpg_ext": __version__}).encode())
            yield archive
            archive.close()
        except BaseException:
            archive.fp = None  # otherwise Python would finish the archive, which fails on a closed file or full disk
            raise


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; refuse folders, and pipes and devices, which may have no end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"there is no file {os.fspath(path)!r}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be opened: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{os.fspath(path)!r} is not a regular file")
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def _as_damage(name: str) -> Iterator[None]:
    """Raise errors of broken zip files as a :class:`DamagedCheckpointError` that names the file or its member."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from None
    except _BROKEN as error:
        raise DamagedCheckpointError(f"{name} is damaged: {error}") from None


class ZipReader(contextlib.AbstractContextManager["ZipReader"]):
    """Read members of a zip file without unpacking them to the disk, and check their CRC-32."""

    def __init__(self, source: Any) -> None:
        self._owned = isinstance(source, str | os.PathLike)
        self.name = os.fspath(source) if self._owned else "the file"
        self._file: Any = open_regular_file(source) if self._owned else source
        try:
            with _as_damage(self.name):
                self.file_size = _check_directory_size(self._file)
                self._archive = zipfile.ZipFile(self._file)
                self._infos = _check_members(self._archive.infolist(), self.file_size)
                self._check_start()
                self.kind = self._read_kind()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, unless the caller opened it."""
        if self._owned:
            self._file.close()

    @property
    def names(self) -> list[str]:
        """Return the names of the members, without the one for the format."""
        return [name for name in self._infos if name != FORMAT]

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def _check_start(self) -> None:
        """Refuse a truncated file that ends with an inner zip file, such as the weights."""
        self._file.seek(0)
        begins_with_member = self._file.read(4) == b"PK\x03\x04"
        if begins_with_member and min((info.header_offset for info in self._infos.values()), default=0) > 0:
            raise DamagedCheckpointError("not a whole zip file: it has members that its directory does not name")

    def _read_kind(self) -> str:
        """Return the kind of the file, which is empty for a file of SB3."""
        if FORMAT not in self._infos:
            return ""
        description = json.loads(self.read_text(FORMAT))
        if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
            raise DamagedCheckpointError(f"its {FORMAT} does not name its kind")
        if description.get("format") != FORMAT_VERSION:
            version = str(description.get("format"))[:20]
            writer = description.get("ddpg_ext")
            advice = f"install ddpg_ext {str(writer)[:20]}, which wrote it" if writer else "it does not name its writer"
            raise CheckpointError(
                f"its format is {version}, but this version of ddpg_ext reads {FORMAT_VERSION}; {advice}"
            )
        return description["kind"]

    def size(self, name: str) -> int:
        """Return the size of a member in bytes."""
        if name not in self._infos:
            raise DamagedCheckpointError(f"{self.name}: it has no member {name!r}")
        return self._infos[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a member."""
        self.size(name)
        with _as_damage(f"{self.name}: {name}"):
            return self._archive.read(name)

    def read_text(self, name: str) -> bytes:
        """Return the content of a text, JSON or pickle member; its size is limited, because its values need memory."""
        if self.size(name) > max(MIN_TEXT, self.file_size):
            raise CheckpointError(f"{self.name}: {name} has {self.size(name):,} bytes, more than the whole file")
        return self.read(name)

    def read_into(self, name: str, target: Any, account_io: AccountIO = ignore_io) -> None:
        """Read a member into an array of the same size."""
        with _as_damage(f"{self.name}: {name}"), cast(zipfile.ZipExtFile, self._archive.open(name)) as member:
            for view in _memory_of(target):
                done = 0
                while done < len(view):
                    n = member.readinto(view[done : done + _CHUNK])
                    if not n:
                        raise EOFError("it ends too early")
                    done += n
                    account_io(n)
            if member.read(1):  # reading to the end also checks the checksum
                raise EOFError("it is longer than its declared size")

    def read_json(self, name: str) -> Any:
        """Return the JSON in a member."""
        data = self.read_text(name)
        with _as_damage(f"{self.name}: {name}"):
            return json.loads(data)


def _check_directory_size(file: Any) -> int:
    """Check the size of a zip file's directory, which ``zipfile`` reads into memory; return the size of the file."""
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - 2**16 - 22)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise DamagedCheckpointError("not a zip file")
    entries, directory_size = struct.unpack("<HL", tail[end + 10 : end + 16])
    locator = tail[end - 20 : end] if end >= 20 else b""
    if locator[:4] == b"PK\x06\x07":  # zip64: the true numbers are in another record
        (position,) = struct.unpack("<Q", locator[8:16])
        if position != tail_start + end - 20 - 56:  # where `zipfile` reads it
            raise DamagedCheckpointError("not a whole zip file")
        file.seek(position)
        record = file.read(56)
        if record[:4] != b"PK\x06\x06" or len(record) < 56:
            raise DamagedCheckpointError("not a whole zip file")
        entries, directory_size = struct.unpack("<QQ", record[32:48])
    if entries > MAX_MEMBERS or directory_size > 1000 * MAX_MEMBERS:
        raise DamagedCheckpointError(f"it has {entries:,} members, more than any checkpoint needs")
    file.seek(0)
    return size


def _check_members(infos: list[zipfile.ZipInfo], file_size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    if len(infos) > MAX_MEMBERS:  # the directory may declare another number
        raise DamagedCheckpointError(f"it has {len(infos):,} members, more than any checkpoint needs")
    for info in infos:
        name, path = info.filename, PurePosixPath(info.filename)
        is_outside = path.is_absolute() or ".." in path.parts or not name or any(char in name for char in "\\:\0")
        faults = {
            "occurs twice": name in members,
            "has a path that leads out of the archive": is_outside,
            "is a symbolic link": stat.S_ISLNK(info.external_attr >> 16),
            "is encrypted": info.flag_bits & 0x1,
            "has an unknown compression": info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            "has two sizes": info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size,
        }
        for fault in filter(faults.get, faults):
            raise DamagedCheckpointError(f"its member {name[:80]!r} {fault}")
        members[name] = info
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(MIN_UNPACKED, MAX_RATIO * file_size):
        raise DamagedCheckpointError(f"a zip bomb: {file_size:,} bytes that would unpack to {unpacked:,}")
    if sum(info.compress_size for info in infos) > file_size:
        raise DamagedCheckpointError("a zip bomb: its members overlap")
    return members


def resolve_suffix(path: Any, suffix: str) -> Any:
    """Return the path, with the suffix if the caller left it out and only the file with the suffix exists."""
    if not isinstance(path, str | os.PathLike):
        return path
    path = Path(path)
    with_suffix = Path(f"{path}{suffix}")
    return with_suffix if not path.is_file() and with_suffix.is_file() else path

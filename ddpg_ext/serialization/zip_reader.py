"""Zip files from anywhere: checked before anything is read, and never unpacked to the disk."""

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ddpg_ext.common.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from ddpg_ext.serialization.archive import FORMAT_VERSION, MANIFEST, views_of_bytes
from ddpg_ext.serialization.codec import parse_json

MAX_MEMBERS = 10_000
#: a member is read into memory whole only up to this size (arrays are streamed)
MAX_JSON = 8 * 2**20
#: beyond this size, what is unpacked may be at most `MAX_RATIO` times as large as the file
SMALL = 64 * 2**20
MAX_RATIO = 20
_CHUNK = 2**20
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, OSError, OverflowError),
)


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """
    :param path: where a file should be
    :return: the file, open for reading
    :raises CheckpointNotFoundError: if there is none
    :raises CheckpointError: if it is a folder, a pipe or a device (which could be read forever)
    """
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


class HostileArchiveError(DamagedCheckpointError):
    """
    A zip file looks as if it was made to harm. A flipped bit can do that, too, so it counts as damaged.
    """


class ZipReader:
    """
    Reads members of a zip file.

    :param source: path, or an open binary file
    :raises CheckpointNotFoundError: if there is no such file
    :raises DamagedCheckpointError: if it is not a zip file, or a broken one
    :raises HostileArchiveError: if it is made to harm: names that lead out of it, links, duplicates, bombs
    """

    def __init__(self, source: str | os.PathLike[str] | BinaryIO | io.IOBase) -> None:
        self.name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the file"
        self._owned = isinstance(source, str | os.PathLike)
        self._file: Any = open_regular_file(source) if isinstance(source, str | os.PathLike) else source
        try:
            size = _check_directory_size(self._file)
            self._archive = zipfile.ZipFile(self._file)
            self._infos = _check_members(self._archive.infolist(), size)
            self.manifest = self._read_manifest()
        except _BROKEN as error:
            self.close()
            kind = type(error) if isinstance(error, CheckpointError) else DamagedCheckpointError
            what = "" if isinstance(error, CheckpointError) else "not a whole zip file: "
            raise kind(f"{self.name}: {what}{error}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ZipReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    @property
    def names(self) -> list[str]:
        """The members, without the manifest."""
        return [name for name in self._infos if name != MANIFEST]

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def _read_manifest(self) -> dict[str, Any] | None:
        if MANIFEST not in self._infos:
            return None
        manifest = parse_json(self._archive.read(MANIFEST))
        if not isinstance(manifest, dict) or not isinstance(manifest.get("members"), dict):
            raise DamagedCheckpointError(f"its {MANIFEST} is no manifest")
        if manifest.get("format") != FORMAT_VERSION:
            raise CheckpointError(
                f"its format is {str(manifest.get('format'))[:20]}, this version of ddpg_ext reads {FORMAT_VERSION}"
            )
        if set(manifest["members"]) != set(self._infos) - {MANIFEST}:
            raise DamagedCheckpointError("its members are not those that its manifest lists")
        return manifest

    def size(self, name: str) -> int:
        """
        :param name: a member
        :return: its size in bytes
        :raises DamagedCheckpointError: if there is none
        """
        if name not in self._infos:
            raise DamagedCheckpointError(f"{self.name}: it has no member {name!r}")
        return self._infos[name].file_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        """
        :param name: a member
        :param limit: largest size in bytes
        :return: its content, checked against its checksums
        :raises DamagedCheckpointError: if there is no such member, or it was altered
        """
        size = self.size(name)
        if limit is not None and size > limit:
            raise CheckpointError(f"{self.name}: {name} has {size:,} bytes, more than any checkpoint needs")
        data = bytearray(size)
        self.read_into(name, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, target: Any) -> None:
        """
        Read a member straight into memory that is there.

        :param name: a member
        :param target: an array whose last dimension lies in one piece, or bytes, of exactly the member's size
        :raises DamagedCheckpointError: if there is no such member, or it was altered
        """
        size = self.size(name)
        if target.nbytes != size:
            raise DamagedCheckpointError(f"{self.name}: {name} has {size:,} bytes instead of {target.nbytes:,}")
        digest = hashlib.sha256()
        try:
            with cast(zipfile.ZipExtFile, self._archive.open(name)) as member:
                for view in views_of_bytes(target):
                    done = 0
                    while done < len(view):
                        n = member.readinto(view[done : done + _CHUNK])
                        if not n:
                            raise EOFError("it ends too early")
                        digest.update(view[done : done + n])
                        done += n
                if member.read(1):
                    raise EOFError("it is longer than it says")
        except _BROKEN as error:
            raise DamagedCheckpointError(f"{self.name}: {name} is damaged: {error}") from None
        if self.manifest is not None:
            listed = self.manifest["members"].get(name)
            if not isinstance(listed, dict) or listed.get("sha256") != digest.hexdigest():
                raise DamagedCheckpointError(f"{self.name}: {name} does not have the checksum that it was written with")

    def read_json(self, name: str) -> Any:
        """
        :param name: a member
        :return: the JSON that it holds
        :raises DamagedCheckpointError: if it holds none
        """
        try:
            return parse_json(self.read(name, MAX_JSON))
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(f"{self.name}: {name}: {error}") from None


def _check_directory_size(file: Any) -> int:
    """
    ``zipfile`` reads a zip file's whole directory into memory, so look at its size first.

    :return: the size of the file
    """
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - 2**16 - 22)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise DamagedCheckpointError("not a zip file")
    entries, directory_size = struct.unpack("<HL", tail[at + 10 : at + 16])
    locator = tail[at - 20 : at] if at >= 20 else b""
    if locator[:4] == b"PK\x06\x07":  # zip64: the true numbers are in another record
        file.seek(struct.unpack("<Q", locator[8:16])[0])
        record = file.read(56)
        if record[:4] != b"PK\x06\x06" or len(record) < 56:
            raise DamagedCheckpointError("not a whole zip file")
        entries, directory_size = struct.unpack("<QQ", record[32:48])
    if entries > MAX_MEMBERS or directory_size > 1000 * MAX_MEMBERS:
        raise HostileArchiveError(f"it has {entries:,} members, more than any checkpoint needs")
    file.seek(0)
    return size


def _check_members(infos: list[zipfile.ZipInfo], archive_size: int) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        path = PurePosixPath(name)
        if name in found:
            raise HostileArchiveError(f"it has two members {name[:80]!r}")
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name or "\0" in name:
            raise HostileArchiveError(f"the name of its member {name[:80]!r} leads out of it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise HostileArchiveError(f"its member {name[:80]!r} is a symbolic link")
        if info.flag_bits & 0x1:
            raise HostileArchiveError(f"its member {name[:80]!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise HostileArchiveError(f"its member {name[:80]!r} is compressed in a way that checkpoints are not")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise DamagedCheckpointError(f"its member {name[:80]!r} has two sizes")
        found[name] = info
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(SMALL, MAX_RATIO * archive_size):
        raise HostileArchiveError(f"a zip bomb: {archive_size:,} bytes that would unpack to {unpacked:,}")
    if sum(info.compress_size for info in infos) > archive_size:
        raise HostileArchiveError("a zip bomb: its members overlap")
    return found


def resolve_suffix(path: Any, suffix: str) -> Any:
    """
    :param path: a path, or an open file
    :param suffix: what may be left out, such as ".zip"
    :return: the path with the suffix, where only the file with it exists; an open file as it is
    """
    if not isinstance(path, str | os.PathLike):
        return path
    path = Path(path)
    with_suffix = path.with_name(path.name + suffix)
    return with_suffix if not path.is_file() and with_suffix.is_file() else path

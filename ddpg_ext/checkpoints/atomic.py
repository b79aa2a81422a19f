"""Files that are either there in full or not at all, with checksums inside."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import ddpg_ext

#: the member that lists all others with their sizes and checksums
MANIFEST = "ddpg_ext.json"
FORMAT_VERSION = 1
_CHUNK = 16 * 2**20


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """
    Write a file that appears under its name only when all of it is on the disk.

    It is written beside its place under a temporary name, flushed to the disk, and renamed. Whatever happens before
    the rename (a kill, a full disk, a crash of the machine), the file that was there stays as it was.

    :param path: where the file goes; missing folders are made
    :yield: the temporary file, to write to
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last; a folder cannot be opened everywhere (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ZipWriter:
    """
    Writes members into a zip file, and at the end the manifest.

    :param file: the file to write to
    :param kind: what the file is: "model", "replay buffer" or "snapshot"
    """

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._kind = kind
        self._members: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: Any) -> None:
        """
        Write a member, without a second copy of it in memory.

        :param name: name of the member
        :param data: bytes, or a contiguous array
        """
        view = memoryview(data)
        # An empty array cannot be cast, and has nothing to write
        view = view.cast("B") if view.nbytes else memoryview(b"")
        digest = hashlib.sha256()
        # The date is left at zip's zero: files with the same content are the same
        with self._archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
            for start in range(0, len(view), _CHUNK):
                chunk = view[start : start + _CHUNK]
                digest.update(chunk)
                member.write(chunk)
        self._members[name] = {"size": len(view), "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        """
        :param name: name of the member
        :param value: JSON
        """
        self.write(name, json.dumps(value, indent=1).encode())

    def abandon(self) -> None:
        """Write nothing more: otherwise ``zipfile`` ends the archive when it is collected, in a file that is closed."""
        self._archive.fp = None

    def close(self) -> None:
        """Write the manifest, and end the archive."""
        manifest = {
            "format": FORMAT_VERSION,
            "kind": self._kind,
            "ddpg_ext": ddpg_ext.__version__,
            "members": self._members,
        }
        self._archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, indent=1))
        self._archive.close()


@contextlib.contextmanager
def write_zip(path: Any, kind: str) -> Iterator[ZipWriter]:
    """
    :param path: where the file goes, or an open binary file (which is not atomic, then)
    :param kind: what the file is
    :yield: the writer; an error inside leaves what was at ``path``
    """
    with contextlib.nullcontext(path) if hasattr(path, "write") else atomic_file(Path(path)) as file:
        writer = ZipWriter(cast(BinaryIO, file), kind)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()

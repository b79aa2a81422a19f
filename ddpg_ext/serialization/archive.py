"""Files that are either there in full or not at all, with checksums inside."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ddpg_ext._version import __version__
from ddpg_ext.common.files import atomic_file

#: the member that lists all others with their sizes and checksums
MANIFEST = "ddpg_ext.json"
FORMAT_VERSION = 1
_CHUNK = 2**20


def views_of_bytes(data: Any) -> Iterator[memoryview]:
    """
    :param data: bytes, or an array whose last dimension lies in one piece
    :yield: its memory in the order of its elements, in as many pieces as it lies in
    """
    if isinstance(data, np.ndarray) and data.ndim > 1 and not data.flags.c_contiguous:
        for part in data:
            yield from views_of_bytes(part)
        return
    view = memoryview(data)
    # An empty array cannot be cast, and has nothing to write
    yield view.cast("B") if view.nbytes else memoryview(b"")


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
        :param data: bytes, or an array
        """
        digest, size = hashlib.sha256(), 0
        # The date is left at zip's zero: files with the same content are the same
        with self._archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
            for view in views_of_bytes(data):
                size += len(view)
                for start in range(0, len(view), _CHUNK):
                    chunk = view[start : start + _CHUNK]
                    digest.update(chunk)
                    member.write(chunk)
        self._members[name] = {"size": size, "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        """
        :param name: name of the member
        :param value: JSON
        """
        self.write(name, json.dumps(value, indent=1).encode())

    def abandon(self) -> None:
        """Leave the archive as it is: the file is closed, or full, when Python would end it."""
        self._archive.fp = None

    def close(self) -> None:
        """Write the manifest, and end the archive."""
        manifest = {
            "format": FORMAT_VERSION,
            "kind": self._kind,
            "ddpg_ext": __version__,
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
            writer.close()
        except BaseException:
            writer.abandon()
            raise

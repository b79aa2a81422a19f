"""Files that are either there in full or not at all; and whether there can be some."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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


def check_can_write(folder: Path) -> None:
    """
    :param folder: a folder that is there, or could be made
    :raises OSError: if nothing can be written there; either way nothing is left behind
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    # Permissions alone do not tell: a superuser has them, and a file system may be read-only
    tempfile.TemporaryDirectory(dir=folder).cleanup()


def _sync_folder(folder: Path) -> None:
    """Make a rename last; a folder cannot be opened everywhere (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

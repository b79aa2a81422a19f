"""Atomic writing of files."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """
    Write a file that appears under its name only when it is complete; missing folders are created.

    The content goes to a temporary file in the same folder, which is flushed to the disk and renamed. Until the rename,
    an existing file of that name stays unchanged, even after a kill, a full disk or a crash of the machine. Its
    permissions are kept.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes and threads may write the same file; the last rename wins
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")  # a name has at most 255 bytes
    try:
        with open(temporary, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there may be no file yet
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # flush the rename to the disk, where a folder can be opened (not on Windows)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Delete temporary files of killed processes, but keep files that another process is writing."""
    for temporary in folder.glob(pattern):
        with contextlib.suppress(OSError):
            with open(temporary, "r+b") as file:  # NFS locks only files that are open for writing
                _lock(file)
            temporary.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed or its process is killed; raise an OSError if it is locked already."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

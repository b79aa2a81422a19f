"""The folder of a sweep: local, shared, or any storage that Ray knows."""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]

from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.zoo.sweep_options import one_line

RESULT = "result.json"
#: settings that the runs of the folder have
SETTINGS = "sweep.json"
#: folder of the snapshots within a run folder, as long as the run is not finished
SNAPSHOTS = "snapshots"
#: seconds to wait for another process to leave a run folder
LOCK_TIMEOUT = 60


def open_folder(folder: str) -> "Storage":
    """Return the storage of a sweep; an ``InvalidArgumentError`` says that nothing can be written there."""
    try:
        storage = Storage(folder)
        if storage.is_local:
            existing = next(path for path in (Path(storage.path), *Path(storage.path).parents) if path.exists())
            # Permissions are not enough: a superuser has all of them, and the file system may be read-only
            tempfile.TemporaryDirectory(dir=existing).cleanup()
        else:
            storage.filesystem.create_dir(storage.path)
        return storage
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)  # without the name of a temporary file
        raise InvalidArgumentError(f"--folder {folder!r} cannot be written to ({reason}); choose another") from error


def merge_settings(storage: "Storage", settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the folder with those of this sweep, by variant and environment, unless they differ."""
    known = storage.read_json(SETTINGS) or {}
    settings = json.loads(json.dumps(settings, default=str))
    for name in settings.keys() & known.keys():
        if settings[name] != known[name]:
            difference = _difference(known[name], settings[name])
            raise InvalidArgumentError(
                f"--folder {storage.given!r} is of another sweep: {name} has {difference}; choose another"
            )
    return {**known, **settings}


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Name the first key, within nested dicts too, whose values differ."""
    key = next(name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name))
    values = theirs.get(key), mine.get(key)
    if all(isinstance(value, dict) for value in values):
        return _difference(*values)  # type: ignore[arg-type]
    return f"`{key}` {values[0]!r} there, got {values[1]!r}"


class Storage:
    """The folder of a sweep: a path, or a URI that pyarrow and so Ray know."""

    def __init__(self, folder: str) -> None:
        self.given = folder
        self.folder = folder if "://" in folder else os.path.abspath(folder)
        self.filesystem, self.path = pyarrow.fs.FileSystem.from_uri(self.folder)
        self.is_local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file, or None if there is no such file."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; objects without JSON become text."""
        encoded = json.dumps(content, indent=1, default=str).encode() + b"\n"
        path = f"{self.path}/{name}"
        # Object stores show a file only when all of it is there
        with atomic_file(Path(path)) if self.is_local else self.filesystem.open_output_stream(path) as file:
            file.write(encoded)

    def open_sweep(self) -> AbstractContextManager[None]:
        """Create the folder; in the context, no other sweep trains there. Object stores have no locks."""
        self.filesystem.create_dir(self.path)
        return _locked(self.path, f"sweep trains in --folder {self.given!r}", 0) if self.is_local else nullcontext()

    @contextmanager
    def open_run(self, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
        """Yield a local folder for a run, which no other process writes to, and a function that uploads it."""
        remote = f"{self.path}/{name}"
        if self.is_local:
            os.makedirs(remote, exist_ok=True)
            # A process that was left behind by a killed driver ends soon
            with _locked(remote, f"process trains in the run folder {name}", LOCK_TIMEOUT):
                yield Path(remote), lambda: None
            return
        with tempfile.TemporaryDirectory() as scratch:
            self.filesystem.create_dir(remote)
            pyarrow.fs.copy_files(remote, scratch, source_filesystem=self.filesystem)
            yield Path(scratch), lambda: self._upload(scratch, remote)

    def _upload(self, scratch: str, remote: str) -> None:
        """Copy a run folder, and then delete the snapshots that it no longer has."""
        pyarrow.fs.copy_files(scratch, remote, destination_filesystem=self.filesystem)
        selector = pyarrow.fs.FileSelector(f"{remote}/{SNAPSHOTS}", allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if not Path(scratch, SNAPSHOTS, info.base_name).exists():
                (self.filesystem.delete_file if info.is_file else self.filesystem.delete_dir)(info.path)


@contextmanager
def _locked(folder: str, use: str, timeout: float) -> Iterator[None]:
    """Lock a folder; the lock ends with the process, too. Wait for another process that has it."""
    deadline = time.monotonic() + timeout
    lock = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DDPGPaperError(f"another {use}; wait until it ends") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(lock)

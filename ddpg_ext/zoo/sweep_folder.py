"""The folder of a sweep: local, shared, or any storage that Ray supports."""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]

from ddpg_ext.common.checks import without_address
from ddpg_ext.common.command_line import one_line
from ddpg_ext.common.errors import DamagedCheckpointError, DDPGPaperError, InvalidArgumentError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.zoo.sweep_options import SETTINGS

RESULT = "result.json"
#: folder of the snapshots in the run folder of an unfinished run
SNAPSHOTS = "snapshots"
#: seconds to wait for another process to leave a run folder
LOCK_TIMEOUT = 60


def open_folder(folder: str) -> "Storage":
    """Return the storage of a sweep; raise an ``InvalidArgumentError`` if it cannot be written to."""
    try:
        storage = Storage(folder)
        if storage.is_local:
            existing = next(path for path in (Path(storage.path), *Path(storage.path).parents) if path.exists())
            # Try it, because a superuser has all permissions, and the file system may be read-only
            tempfile.TemporaryDirectory(dir=existing).cleanup()
        else:
            storage.filesystem.create_dir(storage.path)
        return storage
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)  # without the name of a temporary file
        raise InvalidArgumentError(f"--folder {folder!r} cannot be written to ({reason}); choose another") from error


def merge_settings(storage: "Storage", settings: dict[str, Any]) -> dict[str, Any]:
    """Merge the settings of this sweep into those of the folder; raise an error if they differ for the same run."""
    stored = storage.read_json(SETTINGS) or {}
    settings = json.loads(_to_json(settings))
    for name in settings.keys() & stored.keys():
        if not isinstance(stored[name], dict):
            raise DamagedCheckpointError(
                f"{storage.path}/{SETTINGS} has {str(stored[name])[:80]} as settings of {name}"
            )
        if settings[name] != stored[name]:
            difference = _difference(stored[name], settings[name])
            raise InvalidArgumentError(
                f"--folder {storage.argument!r} belongs to another sweep: {name} has {difference}; choose another"
            )
    return {**stored, **settings}


def _to_json(content: Any) -> str:
    """Return JSON; other objects, such as functions, become text without the address."""
    return json.dumps(content, indent=1, default=without_address)


def _difference(stored: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe the first difference between settings, also in nested dicts."""
    key = next(name for name in {**stored, **new} if stored.get(name) != new.get(name))
    values = stored.get(key), new.get(key)
    if all(isinstance(value, dict) for value in values):
        return _difference(*values)  # type: ignore[arg-type]
    return f"`{key}` {values[0]!r} there, got {values[1]!r}"


class Storage:
    """Read and write the folder of a sweep: a path, or a URI that pyarrow, and therefore Ray, supports."""

    def __init__(self, folder: str) -> None:
        self.argument = folder
        self.folder = folder if "://" in folder else os.path.abspath(os.path.expanduser(folder))
        self.filesystem, self.path = pyarrow.fs.FileSystem.from_uri(self.folder)
        self.is_local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def read_json(self, name: str) -> Any:
        """Return the mapping in a JSON file, or None if there is no such file."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
                content = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            content = error
        if not isinstance(content, dict):
            advice = "restore the file, or choose another folder" if name == SETTINGS else "delete it to train again"
            raise DamagedCheckpointError(
                f"{self.path}/{name} does not hold a mapping (name: value) ({str(content)[:80]}); {advice}"
            )
        return content

    def is_finished(self, run: str) -> bool:
        """Return whether a run has a result that is not an error."""
        return "final_return" in (self.read_json(f"{run}/{RESULT}") or {})

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; objects that JSON does not support become text."""
        encoded = _to_json(content).encode() + b"\n"
        path = f"{self.path}/{name}"
        # Object stores show a file only when it is complete
        with atomic_file(Path(path)) if self.is_local else self.filesystem.open_output_stream(path) as file:
            file.write(encoded)

    def open_sweep(self) -> AbstractContextManager[None]:
        """Create the folder, and lock it in the context, so that no other sweep trains there (except object stores)."""
        self.filesystem.create_dir(self.path)
        return _locked(self.path, f"sweep trains in --folder {self.argument!r}", 0) if self.is_local else nullcontext()

    @contextmanager
    def open_run(self, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
        """Yield a local folder for a run, to which no other process writes, and a function that uploads it."""
        remote = f"{self.path}/{name}"
        if self.is_local:
            os.makedirs(remote, exist_ok=True)
            # If the driver was killed, its processes still end soon
            with _locked(remote, f"process trains in the run folder {name}", LOCK_TIMEOUT):
                yield Path(remote), lambda: None
            return
        with tempfile.TemporaryDirectory() as scratch:
            self.filesystem.create_dir(remote)
            pyarrow.fs.copy_files(remote, scratch, source_filesystem=self.filesystem)
            yield Path(scratch), lambda: self._upload(scratch, remote)

    def _upload(self, scratch: str, remote: str) -> None:
        """Upload a run folder, then delete the uploaded files that it no longer has, such as older snapshots."""
        pyarrow.fs.copy_files(scratch, remote, destination_filesystem=self.filesystem)
        for info in self.filesystem.get_file_info(pyarrow.fs.FileSelector(remote, recursive=True)):
            name = os.path.relpath(info.path, remote)
            if info.is_file and name != RESULT and not Path(scratch, name).exists():
                self.filesystem.delete_file(info.path)

    def delete_snapshots(self, run: str) -> None:
        """Delete the snapshots of a run, if it has any."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.path}/{run}/{SNAPSHOTS}")


@contextmanager
def _locked(folder: str, use: str, timeout: float) -> Iterator[None]:
    """Lock a folder until the block or the process ends; wait while another process has the lock."""
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

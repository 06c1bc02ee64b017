"""How is a folder of large files made once, whole, and found again unharmed?

It is made in a temporary folder beside its place and renamed when complete. SOURCE.json holds where
it came from and each file's sha256.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inferlab.errors import UserError
from inferlab.models.fetch import Progress, sha256_file
from inferlab.units import format_bytes

SOURCE_FILE = "SOURCE.json"
STAMP_FILE = "verified.json"  # size and time of each file when its hash was last checked

Build = Callable[[Path, Progress], dict]  # fills the folder, returns where its files come from


def cache_root() -> Path:
    """The folder of all that is made once: INFERLAB_CACHE, or `inferlab` in the user's cache."""
    if os.environ.get("INFERLAB_CACHE"):
        return Path(os.environ["INFERLAB_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "inferlab"


@dataclass(frozen=True, slots=True)
class CachedFolder:
    """A folder of the cache, there or not."""

    path: Path
    name: str  # as messages call its content
    what: str  # "model", "export": what a message about harm calls it
    schema: str  # of SOURCE.json
    suffix: str  # at least one file ends so

    def find(self) -> Path | None:
        """The verified folder, None when it is not there; UserError when it is damaged."""
        if not self.path.exists():
            return None
        self.verify()
        return self.path

    def ensure(self, build: Build, needed_bytes: float, progress: Progress | None = None) -> Path:
        """The verified folder, filled by `build` if it is not there; two at once make it once.

        UserError when the disk has less than `needed_bytes` or refuses. `progress` gets one line
        of text before each long part; by default it goes to stderr.
        """
        tell = progress or (lambda line: print(line, file=sys.stderr, flush=True))
        with disk_errors(self.path.parent):
            if (found := self.find()) is not None:
                return found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(tell):
                if (found := self.find()) is not None:
                    return found
                self._make(build, needed_bytes, tell)
        return self.path

    def source(self) -> dict:
        """The content of SOURCE.json; UserError when it is not what it should be."""
        try:
            record = json.loads((self.path / SOURCE_FILE).read_text())
            files = record["files"]
            names_ok = all(Path(name).name == name for name in files)
            if record["schema"] != self.schema or not names_ok:
                raise ValueError
            if not any(name.endswith(self.suffix) for name in files):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the cached {self.what} is incomplete ({SOURCE_FILE} is missing or unreadable): "
                f"delete {self.path} and run again"
            ) from error
        return record

    def verify(self) -> None:
        """Raise UserError unless every file has its recorded sha256.

        Hashes are computed once; while size and time of a file stay the same, they are trusted.
        """
        recorded = self.source()["files"]
        for name in recorded:
            if not (self.path / name).is_file():
                raise UserError(
                    f"the cached {self.what} lacks {name}: delete {self.path} and run again"
                )
        if _read_stamp(self.path) == _stamp(self.path, recorded):
            return
        for name, expected in recorded.items():
            if sha256_file(self.path / name) != expected:
                raise UserError(
                    f"the cached {self.what} is damaged ({name} has another sha256): "
                    f"delete {self.path} and run again"
                )
        with suppress(OSError):  # a cache that may only be read is checked in full each time
            _write_stamp(self.path, recorded)

    def _make(self, build: Build, needed_bytes: float, tell: Progress) -> None:
        parent = self.path.parent
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise UserError(
                f"{self.name} needs {format_bytes(needed_bytes)} in {parent}, which has "
                f"{format_bytes(free)} free: free some space or set INFERLAB_CACHE to another disk"
            )
        for left in parent.glob(f".{self.path.name}-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        with new_folder(self.path, self.what) as temporary:
            origin = build(temporary, tell)
            payload = [path for path in sorted(temporary.iterdir()) if path.is_file()]
            files = {path.name: sha256_file(path) for path in payload}
            record = {"schema": self.schema, "model": self.name, "origin": origin, "files": files}
            _write_synced(temporary / SOURCE_FILE, json.dumps(record, indent=1))
            _write_stamp(temporary, files)
        tell(f"{self.name} is ready")

    @contextmanager
    def _lock(self, tell: Progress) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(str(self.path.parent / f"{self.path.name}.lock"))
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            tell(f"waiting for another process that makes {self.path.name} ...")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` when the block ends without an error.

    UserError when `folder` holds something already; `what` goes there, in words.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: give the {what} a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line for the reader."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise UserError(
                f"the disk of {folder} is full: free some space or set INFERLAB_CACHE "
                "to another disk"
            ) from error
        if isinstance(error, OSError) and number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"cannot read or write {folder}: set INFERLAB_CACHE to a folder that you may "
                "write to"
            ) from error
        if isinstance(error, OSError) and number in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"cannot make {folder}: a file lies in its way; set INFERLAB_CACHE to a folder"
            ) from error
        raise


def _stamp(folder: Path, names) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in sorted(names)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _read_stamp(folder: Path) -> dict | None:
    try:
        return json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return None


def _write_stamp(folder: Path, names) -> None:
    partial = folder / f".{STAMP_FILE}-{os.getpid()}"
    partial.write_text(json.dumps(_stamp(folder, names)))
    partial.replace(folder / STAMP_FILE)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

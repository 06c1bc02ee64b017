"""Where does a verified copy of a model's weights lie, and how does it get there?

A model is one folder of safetensors and tokenizer files below `cache_root()`. It is made in a
temporary folder and renamed when complete; SOURCE.json holds each file's sha256.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inferlab.errors import UserError
from inferlab.models import fetch
from inferlab.models.config import ModelConfig, PackageSource, get_config
from inferlab.models.cost import weight_bytes
from inferlab.models.fetch import Progress, sha256_file
from inferlab.units import format_bytes

SOURCE_FILE = "SOURCE.json"
SCHEMA = "inferlab.model/1"
STAMP_FILE = "verified.json"  # size and time of each file when its hash was last checked


def cache_root() -> Path:
    """The folder of all that is made once: INFERLAB_CACHE, or `inferlab` in the user's cache."""
    if os.environ.get("INFERLAB_CACHE"):
        return Path(os.environ["INFERLAB_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "inferlab"


def model_folder(config: ModelConfig) -> Path:
    """Where the model lies when it is there; a new revision gets a new folder."""
    source = config.source
    if source is None:
        raise UserError(f"{config.name} has no published weights: use weights='random'")
    version = source.gguf_sha256 if isinstance(source, PackageSource) else source.revision
    return cache_root() / "models" / f"{config.name}-{version[:12]}"


def find_model(name: str) -> Path | None:
    """The verified folder of `name`, None when it is not there; UserError when it is damaged."""
    folder = model_folder(get_config(name))
    if not folder.exists():
        return None
    verify_folder(folder)
    return folder


def model_sha256(name: str) -> str | None:
    """sha256 over the recorded hashes of the weight files; None when the model is not there."""
    folder = find_model(name)
    if folder is None:
        return None
    hashes = _read_source(folder)["files"]
    weights = [value for key, value in sorted(hashes.items()) if key.endswith(".safetensors")]
    if len(weights) == 1:
        return weights[0]
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def ensure_model(name: str, progress: Progress | None = None) -> Path:
    """The verified folder of `name`, made first if needed (smollm2-135m: about 20 s, 270 MB).

    `progress` gets one line of text before each long part; by default it goes to stderr.
    """
    config = get_config(name)
    folder = model_folder(config)
    tell = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    with _disk_errors(folder.parent):
        if (found := find_model(name)) is not None:
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, tell):
            if (found := find_model(name)) is not None:
                return found
            _build(config, folder, tell)
    return folder


def _build(config: ModelConfig, folder: Path, tell: Progress) -> None:

    needed = 1.3 * weight_bytes(config, "bfloat16")
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"{config.name} needs {format_bytes(needed)} in {folder.parent}, which has "
            f"{format_bytes(free)} free: free some space or set INFERLAB_CACHE to another disk"
        )
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if isinstance(config.source, PackageSource):
            origin = fetch.from_package(config, temporary, tell)
        else:
            origin = fetch.from_hub(config, temporary, tell)
        files = {path.name: sha256_file(path) for path in _payload(temporary)}
        record = {"schema": SCHEMA, "model": config.name, "origin": origin, "files": files}
        _write_synced(temporary / SOURCE_FILE, json.dumps(record, indent=1))
        _write_stamp(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tell(f"{config.name} is ready")


def verify_folder(folder: Path) -> None:
    """Raise UserError unless every file has its recorded sha256.

    Hashes are computed once; while size and time of a file stay the same, they are trusted.
    """
    recorded = _read_source(folder)["files"]
    for name in recorded:
        if not (folder / name).is_file():
            raise UserError(f"the cached model lacks {name}: delete {folder} and run again")
    if _read_stamp(folder) == _stamp(folder, recorded):
        return
    for name, expected in recorded.items():
        if sha256_file(folder / name) != expected:
            raise UserError(
                f"the cached model is damaged ({name} has another sha256): "
                f"delete {folder} and run again"
            )
    with suppress(OSError):  # a cache that may only be read is checked in full each time
        _write_stamp(folder)


def _payload(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


def _read_source(folder: Path) -> dict:
    try:
        record = json.loads((folder / SOURCE_FILE).read_text())
        files = record["files"]
        names_ok = all(Path(name).name == name for name in files)
        if record["schema"] != SCHEMA or not names_ok:
            raise ValueError
        if not any(name.endswith(".safetensors") for name in files):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the cached model is incomplete ({SOURCE_FILE} is missing or unreadable): "
            f"delete {folder} and run again"
        ) from error
    return record


def _stamp(folder: Path, names) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in sorted(names)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _read_stamp(folder: Path) -> dict | None:
    try:
        return json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return None


def _write_stamp(folder: Path) -> None:
    stamp = _stamp(folder, _read_source(folder)["files"])
    partial = folder / f".{STAMP_FILE}-{os.getpid()}"
    partial.write_text(json.dumps(stamp))
    partial.replace(folder / STAMP_FILE)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock(folder: Path, tell: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(str(folder.parent / f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        tell(f"waiting for another process that makes {folder.name} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
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

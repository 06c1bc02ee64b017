"""A trace on disk: JSON Lines, written all or nothing, read strictly.

A file comes from anywhere, so the reader names the line of the first thing that is wrong and reads
no more than the caps below. A file cut exactly between two lines is a valid, shorter trace;
nothing in the format can tell.
"""

import gzip
import json
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from inferlab.trace.model import Request, Trace, TraceError, short_repr
from inferlab.units import MIB

SCHEMA = "inferlab.trace/1"

MAX_FILE_BYTES = 512 * MIB  # after decompression
MAX_LINE_BYTES = 32 * MIB
MAX_REQUESTS = 1_000_000
MAX_EVENTS = 5_000_000

_HEADER_KEYS = frozenset({"schema", "meta"})
_REQUIRED_KEYS = frozenset({"id", "scheduled", "sent", "prompt_tokens", "events", "status"})
_REQUEST_KEYS = _REQUIRED_KEYS | {"error"}


def save_trace(trace: Trace, path: str | os.PathLike) -> Path:
    """Write the trace as JSON Lines, compressed when `path` ends in `.gz`; all of it or nothing.

    The bytes depend only on the trace. Raises TraceError when the folder cannot be written, the
    disk is full, or `meta` holds something that JSON does not.
    """
    path = Path(path)
    try:
        lines = [_dumps({"schema": SCHEMA, "meta": trace.meta})]
        lines += [_dumps(_request_to_json(request)) for request in trace.requests]
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError(f"{path}: meta is not JSON: {error}") from error
    content = ("\n".join(lines) + "\n").encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".trace-", delete=False) as handle:
            temporary = handle.name
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise TraceError(f"{path}: cannot write the trace: {error.strerror or error}") from error
    return path


def load_trace(path: str | os.PathLike) -> Trace:
    """Read a trace file that may come from anywhere.

    Raises TraceError("FILE:LINE: what is wrong") at the first line that breaks the format, and
    TraceError("FILE: ...") when there is nothing to read.
    """
    path = Path(path)
    requests: list[Request] = []
    first_lines: dict[str, int] = {}
    meta: dict[str, Any] | None = None
    event_count = 0
    number = 0
    for number, line in _numbered_lines(path):
        try:
            value = _parse_line(line)
            if meta is None:
                meta = _parse_header(value)
                continue
            request = _parse_request(value)
            if request.id in first_lines:
                raise TraceError(
                    f"id {short_repr(request.id)} was already used "
                    f"on line {first_lines[request.id]}"
                )
            event_count += len(request.events)
            if event_count > MAX_EVENTS:
                raise TraceError(f"more than {MAX_EVENTS:,} events in one file")
            if len(requests) >= MAX_REQUESTS:
                raise TraceError(f"more than {MAX_REQUESTS:,} requests in one file")
        except TraceError as error:
            raise TraceError(f"{path}:{number}: {error}") from None
        first_lines[request.id] = number
        requests.append(request)
    if meta is None:
        raise TraceError(f"{path}: the file is empty; expected an {SCHEMA} header line")
    return Trace(tuple(requests), meta)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) within the caps, decompressed when the content is gzip."""
    number = 0
    try:
        # A pipe or device would block or never end, so only regular files are opened.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise TraceError(f"{path}: is a directory; expected a trace file")
        if not stat.S_ISREG(mode):
            raise TraceError(f"{path}: is not a regular file")
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if path.suffix == ".gz" and not compressed and path.stat().st_size:
                raise TraceError(f"{path}: is named .gz but is not gzip-compressed")
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw
            total = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if len(line) > MAX_LINE_BYTES:
                    raise TraceError(f"{path}:{number}: line longer than {MAX_LINE_BYTES:,} bytes")
                if total > MAX_FILE_BYTES:
                    raise TraceError(f"{path}:{number}: more than {MAX_FILE_BYTES:,} bytes of text")
                yield number, line
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except EOFError:
        raise TraceError(f"{path}:{number + 1}: the compressed file is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path}:{number + 1}: damaged gzip data: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: cannot read: {reason}") from None


def _parse_line(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TraceError(f"not UTF-8 text (byte {error.start + 1})") from None
    if not text.strip():
        raise TraceError("blank line; expected one JSON object a line")
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the file looks truncated"
        raise TraceError(f"not valid JSON at column {error.colno}: {error.msg}{cut}") from None
    except RecursionError:
        raise TraceError("JSON nested too deeply") from None
    except ValueError:
        raise TraceError("a number with too many digits") from None


def _parse_header(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "schema" not in value:
        raise TraceError(f'expected the header {{"schema": "{SCHEMA}", "meta": {{...}}}}')
    schema = value["schema"]
    if schema != SCHEMA:
        name, _, version = SCHEMA.partition("/")
        if isinstance(schema, str) and schema.startswith(f"{name}/"):
            given = schema.partition("/")[2]
            if given.isascii() and given.isdigit() and int(given[:9]) > int(version):
                raise TraceError(
                    f"schema {short_repr(schema)} is newer than this version reads ({SCHEMA}); "
                    "update inferlab"
                )
        raise TraceError(f"schema {short_repr(schema)} is not {SCHEMA}")
    _check_keys(value, _HEADER_KEYS, _HEADER_KEYS)
    if not isinstance(value["meta"], dict):
        raise TraceError("meta must be an object")
    return value["meta"]


def _parse_request(value: Any) -> Request:
    if not isinstance(value, dict):
        raise TraceError(f"expected a request object, not {short_repr(value)}")
    _check_keys(value, _REQUIRED_KEYS, _REQUEST_KEYS)
    identity = value["id"]
    if isinstance(identity, int) and not isinstance(identity, bool):
        value["id"] = str(identity)  # numbered requests are common; one type inside
    return Request(**value)


def _check_keys(value: dict, required: frozenset[str], allowed: frozenset[str]) -> None:
    if missing := sorted(required - value.keys()):
        raise TraceError(f"missing key {', '.join(missing)}")
    if unknown := sorted(value.keys() - allowed):
        raise TraceError(
            f"unknown key {short_repr(unknown[0])}; allowed: {', '.join(sorted(allowed))}"
        )


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise TraceError("a key appears twice in one object")
    return value


def _refuse_constant(name: str) -> None:
    raise TraceError(f"{name} is not a number that a trace may hold")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise TraceError(f"number out of range: {short_repr(text)}")
    return value


def _request_to_json(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "scheduled": request.scheduled,
        "sent": request.sent,
        "prompt_tokens": request.prompt_tokens,
        "events": request.events,
        "status": request.status,
        "error": request.error,
    }


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(", ", ": "))

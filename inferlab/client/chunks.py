"""What does one chunk of an OpenAI-compatible stream say, and how many tokens does it bring?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from inferlab.client.sse import BadStream

DONE = b"[DONE]"
MAX_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: `token_ids` is None where the server does not send them.

    `has_choice` is False for a chunk that only carries usage: it is no event of the answer.
    """

    has_choice: bool = False
    text: str = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def read_chunk(data: bytes) -> Chunk:
    """The chunk; BadStream for data that is no chunk, or that is the server's error object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadStream(f"a chunk that is not JSON: {one_line(data[:80])}") from None
    if not isinstance(value, dict):
        raise BadStream(f"a chunk that is not an object: {one_line(data[:80])}")
    if value.get("error"):
        raise BadStream(f"the server's error: {error_message(value)}")
    usage = value.get("usage")
    usage = usage if isinstance(usage, dict) else None
    choices = value.get("choices")
    if not choices:
        return Chunk(usage=usage)
    try:
        choice = choices[0]
        text = choice.get("text")
        if text is None:  # chat; a model that thinks aloud sends that under another name
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            text = delta.get("reasoning_content") or delta.get("reasoning") or text
        token_ids = choice.get("token_ids")
        if token_ids is not None:
            token_ids = [int(token) for token in token_ids]
        return Chunk(True, str(text), token_ids, choice.get("finish_reason"), usage)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise BadStream(f"a chunk of another shape: {one_line(data[:80])}") from None


def error_message(value: Any) -> str:
    """The message of an OpenAI-style error object, or of FastAPI's `detail`, as one short line."""
    if isinstance(value, dict):
        found = value.get("error", value.get("detail", value))
        if isinstance(found, dict):
            found = found.get("message", found)
        value = found
    return one_line(value if isinstance(value, str) else json.dumps(value))


def one_line(text: str | bytes) -> str:
    """Printable text on one line, cut to MAX_ERROR_CHARS: what a server sends is not trusted."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= MAX_ERROR_CHARS else f"{line[: MAX_ERROR_CHARS - 3]}..."

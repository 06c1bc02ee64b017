"""What bytes does one token become on the wire, and where does an answer end?

Everything that is the same in each chunk of an answer is written once; a token adds its text, its
id where asked for, and a reason to end. There is one chunk a token, even where it shows no text.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quoted  # a C function
from typing import Any

from inferlab.server.text import Decoding

DONE = "data: [DONE]\n\n"


def compact(document: Any) -> str:
    """ASCII JSON without spaces."""
    return json.dumps(document, separators=(",", ":"))


class AnswerText:
    """Text of an answer as it grows, up to the first stop string.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    __slots__ = ("_decoding", "_held", "_longest", "_stops")

    def __init__(self, decoding: Decoding, stops: tuple[str, ...] = ()) -> None:
        self._decoding, self._stops = decoding, stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def add(self, token_id: int, is_last: bool = False) -> tuple[str, bool]:
        """(text that this token makes certain, whether a stop string was met)."""
        text = self._decoding.add(token_id)
        if is_last:
            text += self._decoding.end()
        if not self._stops:
            return text, False
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        keep = 0 if is_last else self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _undecided(self, text: str) -> int:
        """Characters at the end of `text` with which a stop string begins."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


class Chunks:
    """Server-sent events of one answer: `token` for each token, `last` after them."""

    __slots__ = ("_close", "_first", "_head", "_ids", "_open", "_usage_head")

    def __init__(self, answer_id: str, model: str, created: int, chat: bool, ids: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        common = {"id": answer_id, "object": kind, "created": created, "model": model}
        head = f"data: {compact(common)[:-1]},"
        self._usage_head = f'{head}"choices":[],"usage":'
        self._head = f'{head}"choices":[{{"index":0,'
        self._open, self._close = '"text":', ""
        self._first = self._open
        if chat:
            self._open, self._close = '"delta":{"content":', "}"
            self._first = '"delta":{"role":"assistant","content":'
        self._ids = ids

    def token(self, text: str, token_id: int, reason: str | None) -> str:
        """The event of one token; `reason` where it is the last."""
        opening, self._first = self._first, self._open
        ending = "null" if reason is None else f'"{reason}"'
        ids = f',"token_ids":[{token_id}]' if self._ids else ""
        return (
            f"{self._head}{opening}{quoted(text)}{self._close}"
            f',"logprobs":null,"finish_reason":{ending}{ids}}}]}}\n\n'
        )

    def last(self, usage: dict[str, Any] | None) -> str:
        """What follows the last token: the usage where asked for, and the end mark."""
        if usage is None:
            return DONE
        return f"{self._usage_head}{compact(usage)}}}\n\n{DONE}"


def whole_answer(
    answer_id: str, model: str, created: int, chat: bool, choice: dict[str, Any], usage: dict
) -> dict[str, Any]:
    """The one document of an answer that is not streamed; `choice` has text and finish_reason."""
    text = choice.pop("text")
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": answer_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, **content, "logprobs": None, **choice}],
        "usage": usage,
    }


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts as OpenAI reports them; a token that ends the answer counts too."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }

"""Where do requests go, and how do they look there?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from inferlab.errors import UserError

APIS = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server: its URL (with or without /v1) and the model's name there.

    `extensions` asks for what vLLM added and our own server knows: no stop before the length
    (`ignore_eos`) and token ids in the chunks (`return_token_ids`); a strict server refuses fields
    that it does not know. `options` are more fields of the body. `timeout_s` is for a whole
    request. `api_key` goes into the Authorization header and nowhere else.
    """

    url: str
    model: str
    api: str = "completions"
    timeout_s: float = 600.0
    extensions: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise UserError(f"unknown API {self.api[:40]!r}; known: {', '.join(APIS)}")
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 80)
            (parts.hostname or "").encode("idna")  # as the look-up will
        except ValueError:  # UnicodeError is one
            known = False
        if not known or any(char.isspace() or not char.isprintable() for char in self.url):
            raise UserError(f"no address of a server: {self.url[:80]!r}; http://127.0.0.1:8000")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise UserError(f"the timeout must be above 0 s, not {self.timeout_s!r}")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UserError("the API key holds characters that no header can carry")

    @property
    def is_tls(self) -> bool:
        """Whether the URL is https."""
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        """Host name or address."""
        return urlsplit(self.url).hostname

    @property
    def port(self) -> int:
        """TCP port."""
        return urlsplit(self.url).port or (443 if self.is_tls else 80)

    def path(self, ending: str) -> str:
        """Path below /v1 of the URL, such as "/completions"."""
        base = urlsplit(self.url).path.rstrip("/")
        return quote(base if base.endswith("/v1") else f"{base}/v1", safe="/%") + ending

    def request(self, request_id: str, prompt: str | Sequence[int], output_len: int) -> bytes:
        """The bytes of a streamed request for `output_len` tokens, greedy."""
        body: dict[str, Any] = {"model": self.model}
        if self.api == "chat":
            if not isinstance(prompt, str):
                raise UserError("the chat API takes text: make prompts from the model's tokenizer")
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        body |= {"max_tokens": output_len, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.extensions:
            body |= {"ignore_eos": True, "return_token_ids": True}
        content = json.dumps(body | self.options).encode()
        at = urlsplit(self.url).netloc.rpartition("@")[2]
        lines = [
            f"POST {self.path(APIS[self.api])} HTTP/1.1",
            f"Host: {at.encode('idna').decode() if not at.isascii() else at}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(content)}",
            f"X-Request-Id: {quote(request_id)}",
        ]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode() + content

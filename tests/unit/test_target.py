"""Bytes of a request: what every server expects, and nothing smuggled in."""

import json

import pytest

from inferlab.client.target import Target
from inferlab.errors import UserError


def parts(content: bytes):
    head, _, body = content.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), json.loads(body)


@pytest.mark.parametrize(
    "url", ["http://h:81", "http://h:81/", "http://h:81/v1", "http://h:81/v1/"]
)
def test_the_path_has_v1_once(url):
    lines, _ = parts(Target(url, "m").request("r1", [1, 2], 3))
    assert lines[0] == "POST /v1/completions HTTP/1.1" and "Host: h:81" in lines


def test_a_completion_of_token_ids():
    lines, body = parts(Target("http://h", "m", options={"top_k": 1}).request("r 1", [1, 2], 3))
    assert body == {
        "model": "m", "prompt": [1, 2], "max_tokens": 3, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True, "return_token_ids": True,
        "top_k": 1,
    }  # fmt: skip
    assert "X-Request-Id: r%201" in lines and not any("Authorization" in line for line in lines)


def test_a_chat_for_a_strict_server_with_a_key():
    target = Target("https://h/api", "m", "chat", extensions=False, api_key="secret")
    lines, body = parts(target.request("r", "hello", 3))
    assert lines[0] == "POST /api/v1/chat/completions HTTP/1.1"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert "ignore_eos" not in body and "Authorization: Bearer secret" in lines
    assert "secret" not in repr(target) and (target.port, target.is_tls) == (443, True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Target("h:80", "m"),
        lambda: Target("ftp://h", "m"),
        lambda: Target("http://", "m"),
        lambda: Target("http://h:99999", "m"),
        lambda: Target("http://h/a b", "m"),
        lambda: Target("http://h\r\nX: y", "m"),
        lambda: Target("http://h", "m", "embeddings"),
        lambda: Target("http://h", "m", timeout_s=0),
        lambda: Target("http://h", "m", timeout_s=float("nan")),
        lambda: Target("http://h", "m", api_key="a\r\nX: y"),
        lambda: Target("http://h", "m", "chat").request("r", [1], 2),
    ],
)
def test_what_is_no_target_is_refused(make):
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)

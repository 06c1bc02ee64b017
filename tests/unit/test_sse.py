"""Server-sent events: the same whatever the cuts, and bad chunks are said to be bad."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.client import sse
from inferlab.client.chunks import error_message, one_line, read_chunk
from inferlab.client.sse import BadStream, EventParser

STREAM = (
    b': a comment\r\nevent: x\r\ndata: {"a": 1}\r\n\r\ndata: two\ndata: lines\n\n\ndata:[DONE]\n\n'
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_do_not_depend_on_the_cuts(cuts):
    parser, found = EventParser(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in zip(edges, edges[1:], strict=False):
        found += parser.feed(STREAM[start:end])
    assert found == EVENTS and not parser.has_half_an_event


@pytest.mark.parametrize("half", [b"d", b"data: {", b"data: {}", b"data: {}\n", b"data: {}\r\n\r"])
def test_half_an_event_is_noticed(half):
    parser = EventParser()
    assert parser.feed(b"data: 1\n\n" + half) == [b"1"] and parser.has_half_an_event
    parser.feed(b"\n\n")
    assert not parser.has_half_an_event


def test_an_endless_event_is_refused(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(BadStream, match="an event of more than"):
        EventParser().feed(b"data: " + b"x" * 200)


def test_chunks_of_both_apis():
    text = read_chunk(b'{"choices": [{"text": " a", "token_ids": [5], "finish_reason": null}]}')
    assert (text.text, text.token_ids, text.finish_reason) == (" a", [5], None)
    chat = read_chunk(b'{"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]}')
    assert (chat.text, chat.token_ids, chat.finish_reason) == ("b", None, "stop")
    for name in ("reasoning", "reasoning_content"):
        thought = {"choices": [{"delta": {name: "hm", "content": None}}], "usage": None}
        assert read_chunk(json.dumps(thought).encode()).text == "hm"
    role = read_chunk(b'{"choices": [{"delta": {"role": "assistant"}}]}')
    assert role.has_choice and role.text == ""
    usage = read_chunk(b'{"choices": [], "usage": {"completion_tokens": 3}}')
    assert not usage.has_choice and usage.usage == {"completion_tokens": 3}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{'a'", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not an object"),
        (b'{"error": {"message": "no\\n memory \\u001b[31m"}}', r"error: no memory \?\[31m"),
        (b'{"error": "plain"}', "error: plain"),
        (b'{"choices": [3]}', "another shape"),
        (b'{"choices": {"a": 1}}', "another shape"),
        (b'{"choices": [{"text": "a", "token_ids": ["x"]}]}', "another shape"),
        (b'{"choices": [{"delta": "x"}]}', "another shape"),
    ],
)
def test_what_is_no_chunk_is_one_line(data, words):
    with pytest.raises(BadStream, match=words) as caught:
        read_chunk(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 350


def test_messages_of_servers_are_cut_and_cleaned():
    assert error_message({"detail": "Not Found"}) == "Not Found"
    assert error_message({"detail": [{"loc": ["body"]}]}) == '[{"loc": ["body"]}]'
    assert len(one_line("x" * 1000)) == 300

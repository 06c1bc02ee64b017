"""Traces: what values they refuse, and that a file is read strictly and written whole."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import traces

from inferlab.errors import UserError
from inferlab.trace import Request, Trace, TraceError, file, load_trace, save_trace

HEADER = '{"schema": "inferlab.trace/1", "meta": {}}'
GOOD = {
    "id": "a",
    "scheduled": 0.0,
    "sent": 0.5,
    "prompt_tokens": 7,
    "events": [[1.0, 1], [2.0, 2]],
    "status": "ok",
    "error": None,
}


def line(**changes):
    return json.dumps({**GOOD, **changes})


def raw_line(old, new):
    return json.dumps(GOOD).replace(old, new)


def write(folder, *lines, end="\n"):
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8", newline="")
    return path


def refusal(path):
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 + len(str(path))
    return text.removeprefix(str(path))


def test_a_saved_trace_has_the_documented_form(tmp_path):
    trace = Trace((Request("a", 0, 0, 5, [(0.1, 1), (0.14, 2)]),), {"label": "emulated"})
    first, second = save_trace(trace, tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(first) == {"schema": "inferlab.trace/1", "meta": {"label": "emulated"}}
    assert json.loads(second) == {
        "id": "a",
        "scheduled": 0.0,
        "sent": 0.0,
        "prompt_tokens": 5,
        "events": [[0.1, 1], [0.14, 2]],
        "status": "ok",
        "error": None,
    }


@given(traces(min_size=0))
def test_round_trip(tmp_path_factory, trace):
    folder = tmp_path_factory.mktemp("round")
    for name in ("plain.jsonl", "packed.jsonl.gz"):
        assert load_trace(save_trace(trace, folder / name)) == trace


def test_saving_is_deterministic_and_leaves_nothing_beside(tmp_path):
    trace = Trace((Request("a", 0, 0, 5, [(0.1, 1)]),))
    one = save_trace(trace, tmp_path / "a.jsonl.gz").read_bytes()
    two = save_trace(trace, tmp_path / "b.jsonl.gz").read_bytes()
    assert one == two
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl.gz", "b.jsonl.gz"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = save_trace(Trace((Request("a", 0, 0, 5, []),)), tmp_path / "t.jsonl")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_trace(Trace(()), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.jsonl"]


def test_metadata_that_is_not_json_is_refused(tmp_path):
    for meta in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(TraceError, match="meta is not JSON"):
            save_trace(Trace((), meta), tmp_path / "t.jsonl")
    assert os.listdir(tmp_path) == []


def test_numpy_numbers_become_plain_ones():
    request = Request(
        "a", np.float32(0), np.float64(1), np.int64(3), [(np.float64(2), np.int32(1))]
    )
    assert type(request.sent) is float and type(request.prompt_tokens) is int
    assert request.events == ((2.0, 1),)


def test_numbered_requests_and_a_missing_error_are_read(tmp_path):
    short = {key: value for key, value in GOOD.items() if key != "error"}
    path = write(tmp_path, HEADER, json.dumps({**short, "id": 0}), json.dumps({**short, "id": 1}))
    assert [request.id for request in load_trace(path).requests] == ["0", "1"]


def test_a_missing_last_newline_is_no_error(tmp_path):
    assert len(load_trace(write(tmp_path, HEADER, line(), end="")).requests) == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line()[:-20], "not valid JSON"),
        ("", "blank line"),
        ("[1, 2]", "expected a request object"),
        ("nonsense", "not valid JSON"),
        (line(id="x").replace('"x"', '"x", "id": "y"'), "appears twice"),
        (raw_line("2.0", "NaN"), "NaN"),
        (raw_line("2.0", "Infinity"), "Infinity"),
        (raw_line("2.0", "-Infinity"), "-Infinity"),
        (raw_line("2.0", "1e999"), "out of range"),
        (raw_line("2.0", "1e300"), "finite seconds"),
        (raw_line("2.0", "9" * 5000), "too many digits"),
        (raw_line("2.0", "9" * 4000), "huge integer"),
        (raw_line("2.0", "[" * 100_000), "nested too deeply"),
        (raw_line("2.0", "true"), "must be a number of seconds, not True"),
        (raw_line("2.0", '"2.0"'), "must be a number of seconds"),
        (raw_line("2.0", "0.75"), "runs backwards: events[1] at 0.75 s is before events[0]"),
        (line(events=[[0.4, 1]]), "runs backwards: events[0] at 0.4 s is before sent"),
        (line(scheduled=0.6), "sent (0.5 s) is before scheduled"),
        (line(events=[[1.0, -1]]), "must be between 0 and"),
        (line(events=[[1.0, True]]), "must be a whole number, not True"),
        (line(events=[[1.0, 1.0]]), "must be a whole number, not 1.0"),
        (line(events=[[1.0]]), "events[0] must be a pair"),
        (line(events=[[1.0, 1, 1]]), "events[0] must be a pair"),
        (line(events={"a": 1}), "events must be a list"),
        (line(events=None), "events must be a list"),
        (line(prompt_tokens=-1), "prompt_tokens must be between 0 and"),
        (line(prompt_tokens=None), "prompt_tokens must be a whole number"),
        (line(scheduled=False), "scheduled must be a number"),
        (line(sent=None), "sent must be a number"),
        (line(id=""), "id must have 1 to"),
        (line(id="x" * 1000), "id must have 1 to"),
        (line(id=None), "id must be text"),
        (line(id=True), "id must be text"),
        (line(id="\ud800"), "surrogate"),
        (line(status="done"), "status must be one of ok, error, timeout, cancelled"),
        (line(status=["ok"]), "status must be one of"),
        (line(error=3), "error must be text"),
        (line(extra=1), "unknown key 'extra'"),
        (line(id="first"), "id 'first' was already used on line 2"),
        (json.dumps({"id": "b"}), "missing key events, prompt_tokens, scheduled, sent, status"),
    ],
)
def test_a_bad_request_line_is_named(tmp_path, bad, words):
    text = refusal(write(tmp_path, HEADER, line(id="first"), bad))
    assert text.startswith(":3: ") and words in text


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (line(), "expected the header"),
        ("[]", "expected the header"),
        ('{"schema": "inferlab.trace/1"}', "missing key meta"),
        ('{"schema": "inferlab.trace/1", "meta": []}', "meta must be an object"),
        ('{"schema": "inferlab.trace/1", "meta": {}, "x": 1}', "unknown key 'x'"),
        ('{"schema": "inferlab.trace/1", "meta": {"x": NaN}}', "NaN"),
        ('{"schema": "inferlab.trace/2", "meta": {}}', "newer than this version"),
        ('{"schema": "inferlab.trace/99999999999", "meta": {}}', "newer than this version"),
        ('{"schema": "inferlab.trace/0", "meta": {}}', "is not inferlab.trace/1"),
        ('{"schema": "inferlab.trace/x", "meta": {}}', "is not inferlab.trace/1"),
        ('{"schema": "other/1", "meta": {}}', "is not inferlab.trace/1"),
        ('{"schema": 1, "meta": {}}', "is not inferlab.trace/1"),
    ],
)
def test_a_bad_header_is_named(tmp_path, header, words):
    text = refusal(write(tmp_path, header))
    assert text.startswith(":1: ") and words in text


def test_a_file_cut_anywhere_inside_a_line_is_refused(tmp_path):
    content = (HEADER + "\n" + line() + "\n").encode()
    path = tmp_path / "cut.jsonl"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole_lines = content[:length].rstrip(b"\n") in (HEADER.encode(), content.rstrip(b"\n"))
        if not whole_lines:
            assert "the file" in refusal(path) or length == 0


def test_gzip_cut_anywhere_is_refused(tmp_path):
    content = gzip.compress((HEADER + "\n" + line() + "\n").encode())
    path = tmp_path / "cut.jsonl.gz"
    for length in range(2, len(content)):
        path.write_bytes(content[:length])
        assert "truncated" in refusal(path)


def test_damaged_gzip_and_wrong_suffix(tmp_path):
    content = bytearray(gzip.compress((HEADER + "\n" + line() + "\n").encode()))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(bytes(content))
    assert "gzip" in refusal(path) or "JSON" in refusal(path)
    path.write_text(HEADER)
    assert "not gzip-compressed" in refusal(path)


def test_not_utf8_empty_directory_missing_and_device(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\n")
    assert refusal(path).startswith(":2: not UTF-8")
    path.write_bytes(b"")
    assert "the file is empty" in refusal(path)
    assert "is a directory" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    assert "not a regular file" in refusal("/dev/zero")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe)


def test_caps_stop_a_huge_line_file_and_event_count(tmp_path, monkeypatch):
    path = write(tmp_path, HEADER, line(), line(id="b"))
    monkeypatch.setattr(file, "MAX_EVENTS", 3)
    assert refusal(path).startswith(":3: more than 3 events")
    monkeypatch.setattr(file, "MAX_REQUESTS", 1)
    monkeypatch.setattr(file, "MAX_EVENTS", 100)
    assert refusal(path).startswith(":3: more than 1 requests")
    monkeypatch.setattr(file, "MAX_FILE_BYTES", 60)
    assert refusal(path).startswith(":2: more than 60 bytes")
    monkeypatch.setattr(file, "MAX_LINE_BYTES", 50)
    assert refusal(path).startswith(":2: line longer than 50 bytes")


def test_a_gzip_bomb_is_stopped_by_the_line_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_LINE_BYTES", 10_000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 20_000_000))
    assert "line longer than" in refusal(path)


def test_two_requests_with_one_id_are_refused_in_memory():
    request = Request("a", 0, 0, 1, [])
    with pytest.raises(TraceError, match="two requests"):
        Trace((request, request))


@given(
    st.integers(0, 400),
    st.integers(0, 12),
    st.sampled_from(
        [b"", b"\x00", b"\xff", b"[", b"}", b'"', b"1e999", b"NaN", b"-", b"\n", b"9" * 30]
    ),
)
def test_a_mutated_file_loads_or_is_refused_in_one_line(tmp_path_factory, at, cut, new):
    content = (HEADER + "\n" + line() + "\n" + line(id="b") + "\n").encode()
    at %= len(content)
    path = tmp_path_factory.mktemp("mutated") / "t.jsonl"
    path.write_bytes(content[:at] + new + content[at + cut :])
    try:
        load_trace(path)
    except TraceError as error:
        assert "\n" not in str(error) and str(path) in str(error)

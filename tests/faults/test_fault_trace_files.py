"""`inferlab metrics` on things that are no trace, or that want more than a trace may."""

import gzip
import os
import time

import pytest
from hostile import only_error

from inferlab.trace import Request, Trace, save_trace

HEADER = '{"schema": "inferlab.trace/1", "meta": {}}\n'
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202eevil[/bold][red]"


def refused(call, path, words):
    began = time.monotonic()
    for extra in ((), ("--json",)):
        code, out, err = call("metrics", path, *extra)
        assert (code, out) == (2, "")
        assert words in only_error(err)
    assert time.monotonic() - began < 10


def test_dev_zero(call):
    refused(call, "/dev/zero", "/dev/zero: is not a regular file")


def test_a_fifo_does_not_block(call, tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    refused(call, tmp_path / "fifo.jsonl", "is not a regular file")


def test_a_directory(call, tmp_path):
    refused(call, tmp_path, "is a directory; expected a trace file")


def test_a_sparse_file_of_2_gb(call, tmp_path):
    path = tmp_path / "sparse.jsonl"
    path.touch()
    os.truncate(path, 2 * 2**30)
    refused(call, path, "sparse.jsonl:1: line longer than")


def bomb(path, line):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(HEADER.encode())
        line(file)
    return path


def test_a_gzip_bomb_of_one_line(call, tmp_path):
    def line(file):
        for _ in range(64):
            file.write(b" " * 2**20)

    path = bomb(tmp_path / "bomb.jsonl.gz", line)
    assert path.stat().st_size < 2**20
    refused(call, path, "bomb.jsonl.gz:2: line longer than")


def test_a_gzip_bomb_of_many_lines(call, tmp_path, monkeypatch):
    monkeypatch.setattr("inferlab.trace.file.MAX_FILE_BYTES", 2**20)

    def lines(file):
        for index in range(20_000):
            file.write(
                f'{{"id": "{index}", "scheduled": 0, "sent": 0, "prompt_tokens": 1, '
                f'"events": [[1, 1]], "status": "ok"}}\n'.encode()
            )

    path = bomb(tmp_path / "bomb.jsonl.gz", lines)
    refused(call, path, "more than 1,048,576 bytes of text")


def test_terminal_escapes_in_ids_and_meta_do_not_reach_the_terminal(call, tmp_path):
    events = [(0.1, 1), (0.2, 2)]
    requests = (
        Request(EVIL, 0.0, 0.0, 5, events),
        Request(EVIL + "2", 0.0, 0.0, 5, events, status="error", error=EVIL),
    )
    path = save_trace(Trace(requests, {"label": EVIL, "model": EVIL}), tmp_path / "t.jsonl")
    for extra in ((), ("--json",)):
        code, out, err = call("metrics", path, *extra)
        assert (code, err) == (0, "")
        assert not set(out) & set("\x1b\x07\x9b\u202e")
    twice = path.read_text().splitlines()
    path.write_text("\n".join([*twice, twice[-1]]) + "\n")
    code, out, err = call("metrics", path)
    assert code == 2 and out == "" and not set(only_error(err)) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("name", ["a\nb.jsonl", "a\x1b[31m.jsonl", "[red]a.jsonl"])
def test_a_hostile_file_name(call, tmp_path, name):
    refused(call, tmp_path / name, "no such file")
    path = save_trace(Trace((Request("a", 0.0, 0.0, 5, [(0.1, 1)]),)), tmp_path / name)
    code, out, _ = call("metrics", path)
    assert code == 0 and "\x1b" not in out

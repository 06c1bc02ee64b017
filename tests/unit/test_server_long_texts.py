"""Long texts become tokens beside the event loop, which goes on meanwhile."""

import threading
import time

import pytest
from server_examples import StoppingCodec, TestServer

from inferlab.models.load import load_tokenizer
from inferlab.server.text import TokenizerCodec


@pytest.fixture(scope="module")
def codec():
    return TokenizerCodec(load_tokenizer("smollm2-135m"))


@pytest.mark.parametrize("chat", [False, True])
def test_other_threads_run_while_a_text_becomes_tokens(codec, chat):
    """A call that keeps the interpreter's lock would be one gap as long as the call."""
    text = "word hello there " * 100_000
    gaps, done = [], threading.Event()

    def tick():
        last_s = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            gaps.append(time.perf_counter() - last_s)
            last_s += gaps[-1]

    beside = threading.Thread(target=tick)
    beside.start()
    began_s = time.perf_counter()
    ids = codec.encode_chat([("user", text)]) if chat else codec.encode(text)
    took_s = time.perf_counter() - began_s
    done.set()
    beside.join()
    assert len(ids) >= 300_000 and max(gaps) < took_s / 2


def test_a_batch_of_one_gives_the_ids_of_the_tokenizer(codec):
    for text in ("", "hello", "日本 x\n", "word " * 3000):
        assert codec.encode(text) == codec._tokenizer.encode(text)


class WhereCodec(StoppingCodec):
    """Remembers the threads in which conversations became tokens."""

    def __init__(self):
        self.threads = []

    def encode_chat(self, conversation):
        self.threads.append(threading.current_thread())
        return super().encode_chat(conversation)


def test_many_empty_turns_and_long_roles_are_long_texts():
    codec = WhereCodec()
    with TestServer(codec=codec) as server:
        path, turn = "/v1/chat/completions", {"role": "user", "content": "1"}
        assert server.post(path, messages=[turn]).status_code == 200
        empty = [{"role": "user", "content": ""}] * 100_000
        server.post(path, messages=empty)
        server.post(path, messages=[{"role": "x" * 60, "content": "1"}] * 50)
        inline, *beside = (thread is server._thread for thread in codec.threads)
    assert inline and beside == [False, False]

"""Mixed load on a server for a while: everybody is answered, and no process of it grows.

INFERLAB_SOAK_S=600 makes it as long as it should be before a release.
"""

import concurrent.futures
import http.client
import json
import os
import random
import signal
import socket
import time

import psutil
import pytest
from hostile import served
from server_examples import http_post, metrics_page

SOAK_S = float(os.environ.get("INFERLAB_SOAK_S", "20"))
CLIENTS = 16
MOST_BYTES = 8e6  # in the second half
# oneDNN keeps a kernel for each shape it has met, a thousand of them: growth that ends by itself,
# after ten minutes of prompts of all lengths. Few kept, what is left is ours.
FEW_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}


def one_of_all_kinds(port, dice):
    """A request of some kind; its status, or how its client behaved."""
    kind = dice.choice(("stream", "whole", "gone", "bad", "slow", "chat", "unknown"))
    shared = [7] * dice.choice((0, 20, 40))  # so that prefixes are found again
    prompt = shared + [dice.randrange(61) for _ in range(dice.randrange(1, 20))]
    body = {"model": "other" if kind == "unknown" else "tiny", "prompt": prompt,
            "max_tokens": -1 if kind == "bad" else dice.randrange(1, 60),
            "stream": kind in ("stream", "slow", "gone")}  # fmt: skip
    path = "/v1/completions"
    if kind == "chat":
        path = "/v1/chat/completions"
        content = " ".join(map(str, body.pop("prompt")))
        body["messages"] = [{"role": "user", "content": content}]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(http_post(path, json.dumps(body).encode()))
        if kind == "gone":
            time.sleep(dice.random() / 50)
            return kind
        if kind == "slow":
            time.sleep(dice.random() / 10)
        response = http.client.HTTPResponse(raw)
        response.begin()
        content = response.read()
        assert b'"server_error"' not in content
        assert response.status != 200 or kind not in ("stream", "slow") or b"[DONE]" in content
        return response.status


def soak(port, processes):
    """What each of the processes grew by in the second half, in bytes."""
    until, outcomes = time.monotonic() + SOAK_S, []

    def client(seed):
        dice = random.Random(seed)  # noqa: S311
        while time.monotonic() < until:
            outcomes.append(one_of_all_kinds(port, dice))

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, seed) for seed in range(CLIENTS)]
        time.sleep(SOAK_S / 2)
        early = [each.memory_info().rss for each in processes]
        for each in clients:
            each.result()
    assert set(outcomes) == {200, 400, 404, 429, "gone"}
    page = metrics_page(port)
    for name in ("running", "waiting"):
        assert f'inferlab:num_requests_{name}{{model_name="tiny"}} 0.0' in page
    grown = [each.memory_info().rss - was for each, was in zip(processes, early, strict=True)]
    print(f"{len(outcomes)} requests; grown by", *(f"{size / 1e6:.1f} MB" for size in grown))
    return grown


@pytest.mark.parametrize("process", ["tiny"], indirect=True)
@pytest.mark.timeout(2 * SOAK_S + 100)
def test_mixed_load_does_not_make_memory_grow(process):
    one, port = process
    assert max(soak(port, [psutil.Process(one.pid)])) < MOST_BYTES
    one.send_signal(signal.SIGTERM)
    assert one.wait(20) == 0


@pytest.mark.timeout(2 * SOAK_S + 100)
def test_neither_the_server_nor_its_engine_grows():
    """The command itself, with real weights: two processes, shared prefixes, few rows."""
    options = ("--served-model-name", "tiny", "--prefix-cache", "--max-num-seqs", "4",
               "--max-waiting", "4")  # fmt: skip
    with served(*options, env={**os.environ, **FEW_SHAPES}) as (one, line):
        server = psutil.Process(one.pid)
        front, engine = soak(int(line.rpartition(":")[2]), [server, *server.children()])
        one.send_signal(signal.SIGTERM)
        _, err = one.communicate(timeout=60)
    # The server's side fills its pools in the first two minutes.
    assert engine < MOST_BYTES and front < (MOST_BYTES if SOAK_S > 240 else 3 * MOST_BYTES)
    assert (one.returncode, err) == (0, "")

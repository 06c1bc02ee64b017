"""The server's addresses over a scripted engine: answers, streams, refusals in OpenAI's shape."""

import http.client
import json

import pytest
from server_examples import CLIENT, ScriptedEngine, TestServer, events, wait_until

from inferlab.decoding.sampling import GREEDY
from inferlab.server.run import is_loopback


@pytest.fixture(scope="module")
def server():
    with TestServer() as running:
        yield running


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


def test_the_line_says_where(server):
    assert server.line == f"serving tiny at http://127.0.0.1:{server.port}"


def test_health_models_metrics(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert CLIENT.head(server.url + "/health").status_code == 200  # as load balancers ask
    card = server.get("/v1/models").json()["data"][0]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 128)
    assert server.get("/v1/models/tiny").json() == card
    assert server.get("/v1/models/other").status_code == 404
    page = server.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_whole_completion(server):
    answer = server.post(prompt=[1, 2, 3], max_tokens=4, return_token_ids=True).json()
    assert answer["object"] == "text_completion" and answer["model"] == "tiny"
    choice = answer["choices"][0]
    assert (choice["text"], choice["token_ids"]) == (" 4 5 6 7", [4, 5, 6, 7])
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_stream_has_one_chunk_a_token_and_usage_last(server):
    response = server.post(
        stream=True, return_token_ids=True, stream_options={"include_usage": True}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    *tokens, usage = events(response)
    choices = [document["choices"][0] for document in tokens]
    assert [choice["text"] for choice in choices] == [" 4", " 5", " 6", " 7"]
    assert [choice["token_ids"] for choice in choices] == [[4], [5], [6], [7]]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 4
    assert len({document["id"] for document in tokens}) == 1


def test_without_include_usage_there_is_none(server):
    assert all("usage" not in document for document in events(server.post(stream=True)))


def test_chat_streamed_and_whole(server):
    whole = server.post("/v1/chat/completions", max_completion_tokens=3).json()
    message = {"role": "assistant", "content": " 4 5 6"}
    assert whole["choices"][0]["message"] == message and whole["object"] == "chat.completion"
    deltas = [
        document["choices"][0]["delta"]
        for document in events(server.post("/v1/chat/completions", stream=True, max_tokens=2))
    ]
    assert deltas == [{"role": "assistant", "content": " 4"}, {"content": " 5"}]


def test_the_stop_token_ends_an_answer_unless_told_otherwise(server):
    body = {"prompt": [6], "max_tokens": 5}
    stopped = server.post(**body).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == 3
    assert server.post(**body, ignore_eos=True).json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_the_work_on_it(server, stream):
    response = server.post(prompt=[10], max_tokens=100, stop=[" 13"], stream=stream)
    if stream:
        choices = [document["choices"][0] for document in events(response)]
        text, reason = "".join(c["text"] for c in choices), choices[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert (text, reason) == (" 11 12", "stop")
    server.wait_idle()


def test_the_usual_number_of_tokens(server):
    body = {"model": "tiny", "prompt": "20 21"}
    answer = CLIENT.post(server.url + "/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 16  # as OpenAI's API
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "10"}]}
    answer = CLIENT.post(server.url + "/v1/chat/completions", json=chat | {"ignore_eos": True})
    assert answer.json()["usage"]["total_tokens"] == 128  # to the end of the context


def test_the_usual_number_is_what_is_left_near_the_end_of_the_context(server):
    for length in (111, 112, 113, 127):
        body = {"model": "tiny", "prompt": [20] * length, "ignore_eos": True}
        answer = CLIENT.post(server.url + "/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == min(16, 128 - length)
    body = {"model": "tiny", "prompt": [20] * 128}
    refused = CLIENT.post(server.url + "/v1/completions", json=body)
    assert "the prompt has 128 tokens" in error_of(refused)["message"]


def test_sampling_reaches_the_engine(server):
    server.post(temperature=0)
    assert server.engine.seen[-1][3] == GREEDY
    server.post(temperature=0.5, top_p=0.9, top_k=-1, seed=7)
    sampling = server.engine.seen[-1][3]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert sampling.seed == 7
    server.post()
    assert server.engine.seen[-1][3].temperature == 1.0


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "'gpt-4' is not served here"),
        ({"prompt": [1] * 128}, 400, "the prompt has 128 tokens; this server takes 128"),
        ({"max_tokens": 10**400}, 400, "max_tokens is too large: 3 prompt tokens leave 125"),
        ({"max_tokens": 126}, 400, "max_tokens is too large"),
        ({"prompt": [61]}, 400, "beyond the vocabulary of 61"),
        ({"prompt": [10**30]}, 400, "beyond the vocabulary of 61"),
        ({"prompt": "hello"}, 400, "no tokenizer"),
        ({"prompt": "   "}, 400, "no tokens"),
        ({"prompt": [13]}, 400, "never fit"),  # the engine's own refusal
        ({"n": 3}, 400, "n: "),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(server, fields, status, words, stream):
    response = server.post(**{"stream": stream, **fields})
    assert response.status_code == status
    assert words in error_of(response)["message"]


def test_codes_that_clients_look_for(server):
    assert error_of(server.post(model="x"))["code"] == "model_not_found"
    assert error_of(server.post(prompt=[1] * 999))["code"] == "context_length_exceeded"


def test_other_addresses_and_methods(server):
    assert error_of(server.get("/"))["message"] == "there is nothing at this address"
    assert server.get("/docs").status_code == 404
    assert server.get("/v1/completions").status_code == 405


def test_metrics_count_what_happened():
    with TestServer() as server:
        server.post(max_tokens=5)
        server.post(model="x")
        page = server.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    label = '{model_name="tiny"}'
    assert values[f"inferlab:generation_tokens_total{label}"] == "5.0"
    assert values[f"inferlab:prompt_tokens_total{label}"] == "3.0"
    assert values[f"inferlab:time_to_first_token_seconds_count{label}"] == "1.0"
    assert values[f"inferlab:inter_token_latency_seconds_count{label}"] == "4.0"
    assert values[f"inferlab:e2e_request_latency_seconds_count{label}"] == "1.0"
    assert values[f"inferlab:kv_cache_usage_perc{label}"] == "0.0"
    success = 'inferlab:request_success_total{finished_reason="length",model_name="tiny"}'
    assert values[success] == "1.0"
    assert values['inferlab:request_refused_total{model_name="tiny",status="404"}'] == "1.0"


def test_tokens_of_a_step_cross_together():
    engine = ScriptedEngine(step_s=0.01)
    with TestServer(engine) as server:
        heard, deliver = [], server.worker._deliver
        server.worker._deliver = lambda tokens, at_s: (heard.append(tokens), deliver(tokens, at_s))
        raws = [server.connect() for _ in range(6)]
        for raw in raws:
            server.send(raw, max_tokens=20)
        wait_until(lambda: engine.now.output_tokens == 120)
        server.wait_idle()
        steps = [tokens for tokens in heard if tokens]
        assert len(steps) == engine.now.num_steps < engine.now.output_tokens == 120
        for raw in raws:
            raw.close()


def test_small_pieces_are_sent_at_once():
    """Without TCP_NODELAY a chunk could wait 40 ms for the reader's acknowledgement."""
    import socket

    with TestServer(ScriptedEngine(step_s=0.05)) as server, server.connect() as raw:
        transports = []
        server.send(raw, max_tokens=3)
        wait_until(lambda: server.worker.num_open)
        import gc

        for thing in gc.get_objects():
            if type(thing).__name__ == "_SelectorSocketTransport":
                transports.append(thing)
        ours = [t for t in transports if t.get_extra_info("sockname")[1] == server.port]
        assert ours
        for transport in ours:
            option = transport.get_extra_info("socket").getsockopt
            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_is_the_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    others = ("0.0.0.0", "::", "192.168.0.1", "example")  # noqa: S104 - only named
    assert not any(is_loopback(host) for host in others)


def test_requests_on_one_connection(server):
    """Keep-alive: an answer leaves the connection usable."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for stream in (False, True, False):
        body = {"model": "tiny", "prompt": [1, 2], "max_tokens": 2, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(body))
        used = connection.sock
        answer = connection.getresponse()
        assert answer.status == 200 and b"3" in answer.read()
        assert connection.sock is used
    connection.close()

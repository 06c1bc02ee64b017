"""An independent judge: the `openai` client against our server, over the real engine."""

import openai
import pytest
from server_examples import TestServer, tiny_engine

from inferlab.decoding.generate import generate
from inferlab.server.text import NumberCodec

PROMPT = [5, 17, 3, 40]


@pytest.fixture(scope="module")
def engine():
    return tiny_engine()


@pytest.fixture(scope="module")
def server(engine):
    with TestServer(engine, codec=NumberCodec()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def expected(engine):
    tokens = generate(engine.decoder, [PROMPT], 12)[0]
    return "".join(f" {token}" for token in tokens)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_completion_is_what_generate_writes(client, expected):
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.choices[0].text == expected and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12 and answer.usage.prompt_tokens == 4


def test_a_stream_is_the_same_text_with_usage(client, expected):
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"return_token_ids": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected
    assert sum(len(chunk.choices[0].token_ids) for chunk in chunks[:-1]) == 12
    assert chunks[-1].usage.total_tokens == 16


def test_chat_streamed_and_whole(client, expected):
    messages = [{"role": "user", "content": [{"type": "text", "text": "5 17 3 40"}]}]
    body = {"model": "tiny", "messages": messages, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**body)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**body, stream=True)]
    assert "".join(delta.content for delta in deltas) == expected
    assert deltas[0].role == "assistant"


def test_the_same_seed_gives_the_same_answer(client):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.5}
    texts = [client.completions.create(**body, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "more", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"top_p": 1e-300}]
)
def test_extreme_settings_are_greedy_and_leave_the_engine_alive(client, server, expected, more):
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, **more)
    assert answer.choices[0].text == expected
    assert server.worker.failure is None


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="gpt-4", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="max_tokens is too large") as caught:
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10**6)
    assert caught.value.code == "context_length_exceeded"

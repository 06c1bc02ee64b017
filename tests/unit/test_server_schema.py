"""Requests in OpenAI's shape: what is understood, what is ignored, what is refused in one line."""

import json

import pytest

from inferlab.server.schema import ApiError, ChatRequest, CompletionRequest, parse


def completion(**fields):
    return parse(json.dumps({"model": "m", "prompt": "x", **fields}).encode(), CompletionRequest)


def chat(messages, **fields):
    body = {"model": "m", "messages": messages, **fields}
    return parse(json.dumps(body).encode(), ChatRequest)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("x", "x"), (["x"], "x"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ([7], [7])],
)
def test_a_prompt_is_one_text_or_one_list_of_ids(prompt, expected):
    assert completion(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], ["a", "b"], [[1], [2]], [-1], [True], [1.5], ["a", 1], {}, None, 3]
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ApiError, match="prompt: one text or one list of token ids") as caught:
        completion(prompt=prompt)
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_unknown_fields_are_ignored_and_nulls_are_defaults():
    wanted = completion(
        user="someone",
        logit_bias={},
        n=None,
        stream=None,
        stop=None,
        temperature=None,
        nonsense=[1],
    )
    assert wanted.stop_strings == () and not wanted.wants_usage


def test_stop_and_usage():
    wanted = completion(stop="end", stream_options={"include_usage": True})
    assert (wanted.stop_strings, wanted.wants_usage) == (("end",), True)
    assert completion(stop=["a", "", "b"]).stop_strings == ("a", "b")


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2}, {"best_of": 2}, {"echo": True}, {"logprobs": 5}, {"max_tokens": 0},
        {"max_tokens": -1}, {"max_tokens": "4"}, {"max_tokens": 1.5},
        {"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -2},
        {"stop": 3}, {"stop": ["x"] * 17}, {"stream": 1}, {"seed": 2**63}, {"model": 7},
        {"stream_options": 1}, {"stream_options": {"include_usage": "yes"}},
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields):
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    name = next(iter(fields))
    assert caught.value.param == name and str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 120


NOT_SERVED = [
    ("suffix", "", "x"), ("logit_bias", {}, {"5": 1}), ("frequency_penalty", 0.0, 0.1),
    ("presence_penalty", 0, -1), ("repetition_penalty", 1.0, 1.1), ("min_p", 0.0, 0.05),
    ("min_tokens", 0, 3), ("stop_token_ids", [], [2]), ("bad_words", [], ["x"]),
    ("allowed_token_ids", [], [1]), ("response_format", {"type": "text"}, {"type": "json_object"}),
    ("structured_outputs", {}, {"regex": "x"}), ("guided_json", {}, {"type": "object"}),
    ("guided_regex", "", "[0-9]+"), ("guided_choice", [], ["yes", "no"]),
    ("guided_grammar", "", "root"), ("tools", [], [{"type": "function"}]),
    ("tool_choice", "none", "required"), ("functions", [], [{"name": "f"}]),
    ("function_call", "auto", {"name": "f"}), ("logprobs", False, 5), ("logprobs", None, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "neutral", "asked"), NOT_SERVED)
def test_what_is_not_served_is_refused_unless_it_asks_for_nothing(name, neutral, asked):
    turns = [{"role": "user", "content": "x"}]
    for make in (completion, lambda **fields: chat(turns, **fields)):
        make(**{name: neutral})
        make(**{name: None})
        with pytest.raises(ApiError) as caught:
            make(**{name: asked})
        assert (caught.value.status, caught.value.param) == (400, name)
        assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"3", b"null", b'{"model": "m", "prompt": "\xff\xfe"}',
     b'{"model": "m", "prompt": "\\ud800"}', b'{"model":' * 100_000, b"\x00", b"[" * 1_000_000,
     b'{"model": "m", "prompt": "x", "temperature": NaN}'],
)  # fmt: skip
def test_a_body_that_is_no_request_is_400(body):
    with pytest.raises(ApiError) as caught:
        parse(body, CompletionRequest)
    assert caught.value.status == 400 and "\n" not in str(caught.value)


def test_messages_have_texts_or_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    wanted = chat([{"role": "system", "content": "s"}, {"role": "user", "content": parts}])
    assert [message.text for message in wanted.messages] == ["s", "a\nb"]
    assert chat([{"role": "assistant", "content": None}]).messages[0].text == ""


@pytest.mark.parametrize(
    "messages",
    [[], [{}], [{"role": "user", "content": 3}], "hello", [1] * 100_000,
     [{"role": "x" * 65, "content": "x"}],
     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]],
)  # fmt: skip
def test_other_messages_are_refused(messages):
    with pytest.raises(ApiError, match="^messages: "):
        chat(messages)


def test_the_kind_of_error_follows_the_status():
    kinds = {status: ApiError(status, "x").body()["error"]["type"] for status in (400, 429, 503)}
    assert kinds == {400: "invalid_request_error", 429: "rate_limit_error", 503: "server_error"}

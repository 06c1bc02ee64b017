"""Text as it grows, token by token: nothing lost, nothing beyond a stop string, valid JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.models.load import load_tokenizer
from inferlab.server.stream import AnswerText, Chunks, usage_of, whole_answer
from inferlab.server.text import NumberCodec, TokenizerCodec


class Letters:
    """Token i is letter i of the alphabet."""

    def add(self, token_id):
        return chr(97 + token_id)

    def end(self):
        return ""


@pytest.fixture(scope="module")
def codec():
    return TokenizerCodec(load_tokenizer("smollm2-135m"))


def written(text, stops):
    """(what was sent, whether a stop was met, pieces) of a text of letters, one token each."""
    answer, pieces = AnswerText(Letters(), stops), []
    for place, letter in enumerate(text):
        piece, stopped = answer.add(ord(letter) - 97, place == len(text) - 1)
        pieces.append(piece)
        if stopped:
            break
    return "".join(pieces), stopped, pieces


@given(st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1), max_size=3))
def test_an_answer_ends_before_the_first_stop_string(text, stops):
    sent, stopped, _ = written(text, tuple(stops))
    for size in range(1, len(text) + 1):
        found = [text[:size].find(stop) for stop in stops if stop in text[:size]]
        if found:
            assert stopped and sent == text[: min(found)]
            return
    assert not stopped and sent == text


def test_text_is_held_back_only_while_it_may_become_a_stop():
    assert written("abxabc", ("abc",)) == ("abx", True, ["", "", "abx", "", "", ""])
    assert written("abx", ()) == ("abx", False, ["a", "b", "x"])


@given(st.text(max_size=40))
def test_a_text_streams_as_it_was(text):
    tokenizer = load_cached()
    codec = TokenizerCodec(tokenizer)
    decoding, ids = codec.decoding(), codec.encode(text)
    streamed = "".join(decoding.add(i) for i in ids) + decoding.end()
    assert streamed == tokenizer.decode(ids)  # the text, but for bytes that the vocabulary lacks


@given(st.lists(st.integers(0, 49_151), max_size=30))
def test_any_tokens_stream_as_the_tokenizer_decodes_them(ids):
    tokenizer = load_cached()
    decoding = TokenizerCodec(tokenizer).decoding()
    streamed = "".join(decoding.add(i) for i in ids) + decoding.end()
    assert streamed == tokenizer.decode(ids, skip_special_tokens=True)


_TOKENIZERS = []


def load_cached():
    if not _TOKENIZERS:
        _TOKENIZERS.append(load_tokenizer("smollm2-135m"))
    return _TOKENIZERS[0]


def test_a_character_in_pieces_comes_with_its_last_token(codec):
    ids, decoding = codec.encode("日"), codec.decoding()
    assert [decoding.add(i) for i in ids] == [""] * (len(ids) - 1) + ["日"]
    cut = codec.decoding()
    assert [cut.add(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert cut.end() == "\ufffd" and cut.end() == ""


def test_the_chat_template_ends_where_the_answer_begins(codec):
    text = codec._rust.decode(codec.encode_chat([("user", "hi")]), skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert codec.stop_token_ids == (codec._tokenizer.eos_token_id,)


def test_numbers_are_tokens_without_a_tokenizer():
    codec = NumberCodec()
    assert codec.encode("3 14\n15") == [3, 14, 15]
    assert codec.encode_chat([("system", "1"), ("user", "2 3")]) == [1, 2, 3]
    assert codec.decoding().add(5) == " 5"
    for text in ("hello", "-1", "1.5", "1 two", "9" * 40, "²"):
        with pytest.raises(UserError, match="no tokenizer"):
            codec.encode(text)


@given(st.text(), st.booleans(), st.booleans())
def test_every_chunk_is_one_event_with_one_json_document(text, chat, ids):
    chunks = Chunks("id-1", 'm"', 7, chat, ids)
    lines = [chunks.token(text, 5, None), chunks.token(text, 6, "stop")]
    documents = []
    for line in lines:
        assert line.isascii() and line.endswith("\n\n") and line.count("\n") == 2
        documents.append(json.loads(line.removeprefix("data: ")))
    first, last = (document["choices"][0] for document in documents)
    assert (first["finish_reason"], last["finish_reason"]) == (None, "stop")
    assert last.get("token_ids") == ([6] if ids else None)
    content = {"content": text}
    assert (last["delta"] == content) if chat else (last["text"] == text)
    assert not chat or first["delta"] == {"role": "assistant", **content}
    assert documents[0]["model"] == 'm"' and documents[0]["id"] == "id-1"


def test_usage_comes_last_if_asked_for():
    chunks = Chunks("id", "m", 7, False, False)
    assert chunks.last(None) == "data: [DONE]\n\n"
    usage, done = chunks.last(usage_of(3, 4)).split("\n\n")[:2]
    document = json.loads(usage.removeprefix("data: "))
    assert document["choices"] == [] and document["usage"]["total_tokens"] == 7
    assert done == "data: [DONE]"


def test_a_whole_answer_has_text_or_message():
    choice = {"text": "x", "finish_reason": "length"}
    text = whole_answer("id", "m", 7, False, dict(choice), usage_of(1, 1))
    chat = whole_answer("id", "m", 7, True, dict(choice), usage_of(1, 1))
    assert text["choices"][0]["text"] == "x" and text["object"] == "text_completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "x"}

"""Prompts as text have exactly their tokens, or are refused."""

import pytest

from inferlab.client.prompts import in_words, open_tokenizer, texts, word_tokens
from inferlab.errors import UserError
from inferlab.workload import uniform_batch

WORDS = [f"{a}{b}{c}" for a in "bdfklm" for b in "aeiou" for c in "nprst"]  # 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE that knows each of the words behind a space as one token."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted({letter for word in WORDS for letter in word} | {"Ġ"})
    pieces = [*letters, *(f"Ġ{w[0]}" for w in WORDS), *(f"Ġ{w[:2]}" for w in WORDS)]
    pieces += [f"Ġ{word}" for word in WORDS]
    merges = [("Ġ", w[0]) for w in WORDS] + [(f"Ġ{w[0]}", w[1]) for w in WORDS]
    merges += [(f"Ġ{w[:2]}", w[2]) for w in WORDS]
    vocabulary = {piece: rank for rank, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocabulary, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = Decoder()
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_texts_of_words_have_exactly_their_tokens(folder):
    tokenizer = open_tokenizer(folder)
    words = word_tokens(tokenizer)
    assert len(words) >= len(WORDS)
    workload = in_words(uniform_batch(len(words), 5, 40, 3), words)
    for text, spec in zip(texts(workload, tokenizer), workload.requests, strict=True):
        assert tuple(tokenizer.encode(text).ids) == spec.prompt_token_ids


def test_tokens_that_melt_together_are_refused(folder):
    letters = uniform_batch(10, 2, 40, 3)  # single letters: some make a known piece
    spaced = in_words(letters, list(range(10)))
    tokenizer = open_tokenizer(folder)
    tokenizer_ids = {spec.prompt_token_ids for spec in spaced.requests}
    assert tokenizer_ids
    melted = in_words(uniform_batch(2, 1, 40, 3), [tokenizer.token_to_id(t) for t in ("Ġ", "b")])
    with pytest.raises(UserError, match="another number of tokens as text"):
        texts(melted, tokenizer)


def test_a_tokenizer_that_cannot_be_read_or_has_no_words(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    with pytest.raises(UserError, match="cannot read a tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match="too few whole words"):
        word_tokens(Tokenizer(BPE({"a": 0}, [])))

"""Tokens of events: ids first, then the usage where it can be true, and never in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.client.tokens import count_tokens


def counted(texts, usage, output_len=16, ids=None):
    said = None if usage is None else {"completion_tokens": usage}
    return count_tokens(texts, ids or [None] * len(texts), said, output_len)


def test_token_ids_are_counted_as_they_are():
    found = counted(["", "a", ""], 9, ids=[[1], [2, 3], []])
    assert (found.counts, found.source, found.disagrees) == ((1, 2, 0), "token_ids", True)
    assert not counted(["a"], 1, ids=[[7]]).disagrees


def test_a_chunk_with_text_is_a_token_when_the_usage_agrees():
    found = counted(["", "a", "b", ""], 2)
    assert (found.counts, found.source, found.disagrees) == ((0, 1, 1, 0), "chunks", False)


def test_without_usage_it_is_said():
    assert counted(["a", "b"], None).source == "no_usage"


@given(st.integers(1, 40), st.integers(0, 100))
def test_missing_tokens_are_spread_evenly(chunks, more):
    found = counted(["", *["x"] * chunks], chunks + more, output_len=200)
    spread = found.counts[1:]
    assert sum(found.counts) == chunks + more and found.counts[0] == 0
    assert max(spread) - min(spread) <= 1 and not found.disagrees


def test_one_token_less_is_taken_from_the_flush_at_the_end():
    found = counted(["a", "b", "c", ""], 2)
    assert (found.counts, found.source) == ((1, 1, 0, 0), "usage")


@pytest.mark.parametrize("usage", [160, 1, 0, -3])
def test_a_usage_that_cannot_be_true_is_refused(usage):
    found = counted(["a"] * 4, usage)
    assert (found.counts, found.source, found.disagrees) == ((1,) * 4, "usage_refused", True)


@pytest.mark.parametrize("usage", ["12", True, None, 2.5])
def test_a_usage_that_is_no_number_is_none(usage):
    assert counted(["a"], usage).source == "no_usage"


def test_an_empty_answer():
    assert counted([], 5).counts == () and counted([], 5).source == "usage_refused"

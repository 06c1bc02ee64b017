"""Mixes of lengths: drawn requests follow their tables, and a bad trace gets one line."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from inferlab import lengths
from inferlab.errors import UserError
from inferlab.lengths import LengthMix, constant, load_mix, load_trace, mix_of

MEANS = {"azure-conv": (1154.7, 211.1), "azure-code": (2047.8, 27.9)}  # of the summary file


@pytest.mark.parametrize("name", lengths.NAMES)
def test_drawn_requests_have_the_means_and_the_correlation_of_the_trace(name):
    mix = load_mix(name)
    drawn = np.array(mix.sample(40_000, seed=1))
    assert len(mix.prompt_quantiles) == len(mix.output_quantiles) == 101
    assert drawn.mean(axis=0) == pytest.approx(MEANS[name], rel=0.03)
    assert spearmanr(*drawn.T).statistic == pytest.approx(mix.rank_correlation, abs=0.02)
    assert drawn.min() >= 1 and drawn[:, 0].max() <= mix.prompt_quantiles[-1]
    assert "CC BY 4.0" in mix.source


def test_a_seed_decides_and_longer_draws_differ():
    mix = load_mix("azure-conv")
    assert mix.sample(50, seed=3) == mix.sample(50, seed=3) != mix.sample(50, seed=4)


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.8, 1.0])
def test_the_rank_correlation_is_spearmans(rho):
    table = tuple(map(float, range(1, 10_002, 100)))
    drawn = np.array(LengthMix("x", table, table, rho).sample(20_000, seed=0))
    assert spearmanr(*drawn.T).statistic == pytest.approx(rho, abs=0.02)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 500)), min_size=2, max_size=50))
def test_a_mix_stays_within_what_it_was_made_of(pairs):
    drawn = np.array(mix_of(pairs, "own").sample(30, seed=0))
    assert (drawn >= np.min(pairs, axis=0)).all() and (drawn <= np.max(pairs, axis=0)).all()


def test_a_constant_mix_is_constant():
    assert set(constant(512, 100).sample(20, seed=0)) == {(512, 100)}


def test_a_trace_of_ones_own_is_read_packed_or_plain(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:15:{i:02d},{100 + i},{50 - i}\n" for i in range(40)
    )
    (tmp_path / "mine.csv").write_text(text)
    with gzip.open(tmp_path / "mine.csv.gz", "wt") as file:
        file.write(text)
    mix = load_trace(tmp_path / "mine.csv")
    assert mix == load_trace(tmp_path / "mine.csv.gz") and mix.name == "mine"
    assert mix.rank_correlation == pytest.approx(-1)
    assert mix.prompt_quantiles[0] == 100 and mix.output_quantiles[-1] == 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,4\n", "has no column 'ContextTokens'"),
        ("ContextTokens,GeneratedTokens\n5,6\n7,many\n", "bad.csv:3: two whole numbers"),
        ("ContextTokens,GeneratedTokens\n5,6\n7\n", "bad.csv:3"),
        ("ContextTokens,GeneratedTokens\n5,0\n", "bad.csv:2"),
        ("ContextTokens,GeneratedTokens\n5,6\n", "fewer than two requests"),
        ("", "fewer than two requests"),
    ],
)
def test_a_bad_trace_gets_one_line(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_trace(tmp_path / "missing.csv")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"ContextTokens" * 99)[:20])
    with pytest.raises(UserError, match="cannot read .*torn"):
        load_trace(tmp_path / "torn.csv.gz")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        load_trace(tmp_path / "binary.csv")
    monkeypatch.setattr(lengths, "MAX_TRACE_BYTES", 10)
    (tmp_path / "long.csv").write_text("ContextTokens,GeneratedTokens\n1,2\n")
    with pytest.raises(UserError, match="longer than 10 characters"):
        load_trace(tmp_path / "long.csv")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: load_mix("azure-poetry"), "known: azure-conv, azure-code"),
        (lambda: LengthMix("x", (5.0, 3.0), (1.0, 2.0)), "x: prompt quantiles must be finite"),
        (lambda: LengthMix("x", (1.0, 3.0), (0.0, 2.0)), "an? output length must be 1"),
        (lambda: LengthMix("x", (1.0, 3.0), (1.0,)), "output quantiles"),
        (lambda: LengthMix("x", (1.0, 3.0), (1.0, 2.0), 1.5), "between -1 and 1"),
        (lambda: constant(5, 5).sample(0, 0), "n must be a whole number"),
    ],
)
def test_impossible_mixes_are_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong()


@pytest.mark.parametrize("cv", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_a_lognormal_mix_has_its_means_and_its_cv(cv):
    drawn = np.array(lengths.lognormal(400, 100, cv).sample(100_000, seed=5))
    assert drawn.mean(axis=0) == pytest.approx((400, 100), rel=0.02)
    assert drawn.std(axis=0) / drawn.mean(axis=0) == pytest.approx((cv, cv), rel=0.05, abs=0.01)


def test_a_scaled_mix_keeps_its_shape_and_says_so():
    mix = load_mix("azure-conv")
    tenth = mix.scaled(0.1)
    assert "x 0.1" in tenth.name and mix.scaled(1.0) is mix
    drawn, small = (np.array(m.sample(40_000, seed=1)) for m in (mix, tenth))
    assert small.mean(axis=0) * 10 == pytest.approx(drawn.mean(axis=0), rel=0.02)
    assert small.min() >= 1 and tenth.rank_correlation == mix.rank_correlation


def test_gaps_of_a_service_are_in_units_of_their_mean():
    gaps = lengths.interarrival_gaps("azure-conv", 100_000, seed=0)
    assert gaps.mean() == pytest.approx(1, rel=0.02)
    assert gaps.std() == pytest.approx(1.094, rel=0.05)  # of the summary file


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: lengths.lognormal(0.5, 10, 1.0),
        lambda: lengths.lognormal(10, float("inf"), 1.0),
        lambda: lengths.lognormal(10, 10, -0.1),
        lambda: lengths.lognormal(10, 10, 50.0),
        lambda: constant(5, 5).scaled(0.0),
        lambda: constant(5, 5).scaled(float("nan")),
        lambda: lengths.interarrival_gaps("azure-poetry", 5, 0),
    ],
)
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(UserError):
        wrong()

"""Quantities are written with the right prefix and two or three digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.units import (
    MISSING,
    format_bytes,
    format_metric,
    format_number,
    format_rate,
    format_ratio,
    format_seconds,
    round_significant,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 s"),
        (1.5, "1.50 s"),
        (0.01234, "12.3 ms"),
        (0.9996, "1.00 s"),
        (999.6e-6, "1.00 ms"),
        (42e-6, "42.0 µs"),
        (3e-7, "300 ns"),
        (-0.002, "-2.00 ms"),
        (123456, "123,000 s"),
        (None, MISSING),
        (float("nan"), MISSING),
        (float("inf"), MISSING),
    ],
)
def test_seconds(value, text):
    assert format_seconds(value) == text


def test_bytes_rates_and_ratios():
    assert format_bytes(269_060_552) == "269 MB"
    assert format_bytes(269_060_552, binary=True) == "257 MiB"
    assert format_bytes(512) == "512 B"
    assert format_rate(4.8e12, "B/s") == "4.80 TB/s"
    assert format_rate(9.89e14, "FLOP/s") == "989 TFLOP/s"
    assert format_rate(12_345.6, "tok/s") == "12,300 tok/s"
    assert format_ratio(1.526) == "1.53x"
    assert format_ratio(None) == MISSING
    assert format_seconds(0.01234, digits=2) == "12 ms"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ttft_median_s", 0.0123, "12.3 ms"),
        ("output_tok_per_s", 12_345.6, "12,300 tok/s"),
        ("rate_req_per_s", 8, "8.00 req/s"),
        ("within_events_per_s", 12_345.6, "12,300 events/s"),
        ("flops", 2.5e12, "2.50 TFLOP"),
        ("good_ratio", 0.934, "93%"),
        ("num_seqs", 12_345, "12345"),
        ("mean_batch", 4.5678, "4.57"),
        ("ttft_s", None, MISSING),
        ("good_ratio", float("nan"), MISSING),
    ],
)
def test_a_metric_is_written_as_its_name_ends(name, value, text):
    assert format_metric(name, value) == text


@given(st.floats(1e-12, 1e15))
def test_a_number_reads_back_within_its_digits(value):
    text = format_number(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(round_significant(value), rel=1e-12)

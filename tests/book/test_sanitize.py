"""Each rule of nbval_sanitize.cfg works; nbval ignores a rule whose replace line is bare."""

from __future__ import annotations

import re

import pytest
from nbval.plugin import get_sanitize_patterns
from toc import ROOT

CONFIG = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")


def sanitize(text: str) -> str:
    for pattern, replacement in get_sanitize_patterns(CONFIG):
        text = re.sub(pattern, replacement, text)
    return text


def test_no_rule_is_silently_dropped():
    assert len(get_sanitize_patterns(CONFIG)) == CONFIG.count("\nregex:")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<Decoder at 0x7f1b2c3d4e5f>", "<Decoder at 0x7fffffffaaaa>"),
        ("/a/ipykernel_101/2213.py:3: UserWarning", "/b/ipykernel_77/99.py:3: UserWarning"),
        ("<table id='T_1a2b3'>", "<table id='T_9f8e7'>"),
        ("measured 2026-11-21T02:45:48Z", "measured 2027-01-02 03:04:05.678+00:00"),
    ],
)
def test_a_rule_makes_two_runs_equal(first, second):
    assert sanitize(first) == sanitize(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1.8 times", "1.9 times"),
        ("[12, 7, 3]", "[12, 7, 4]"),
        ("0x1f", "0x2f"),
        ("equal", "differ"),
    ],
)
def test_results_stay_different(first, second):
    assert sanitize(first) != sanitize(second)

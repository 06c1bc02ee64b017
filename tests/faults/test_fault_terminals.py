"""Where the output goes: a closed pipe, a full disk, another encoding, a narrow terminal, jq."""

import json
import os
import pty
import shutil
import subprocess

import pytest
from hostile import the_error
from record_examples import LAB, write_example

from inferlab.trace import Request, Trace, save_trace


@pytest.fixture
def book(book):
    """With a good record, and a trace whose name and label are not ASCII."""
    write_example(book.root / "data" / "records")
    book.lab("", LAB)
    trace = Trace((Request("a", 0.0, 0.0, 5, [(0.1, 1), (0.2, 2)]),), {"label": "日本 ×"})
    save_trace(trace, book.root / "日本.jsonl")
    return book


def shell(book, line, **environment):
    return subprocess.run(
        ["bash", "-c", line.replace("inferlab ", " ".join([*book.command(), ""]))],
        cwd=book.root,
        env=book.environment(**environment),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )


def test_a_closed_pipe_is_quiet(book):
    for verb in ("metrics 日本.jsonl", "metrics 日本.jsonl --json"):
        done = shell(book, f"inferlab {verb} | head -1 | wc -l; inferlab {verb} | true")
        assert done.stderr == "" and done.stdout.strip() == "1", verb


@pytest.mark.parametrize("verb", ["status --json", "metrics 日本.jsonl"])
def test_stdout_that_is_closed_or_full(book, verb):
    done = shell(book, f"inferlab {verb} >&-")
    assert done.returncode == 1 and "standard output is closed" in the_error(done.stderr)
    done = shell(book, f"inferlab {verb} >/dev/full")
    assert done.returncode == 1 and "disk full" in the_error(done.stderr)


def test_stderr_that_is_closed_or_full_keeps_the_exit_code(book):
    for where in ("2>&-", "2>/dev/full"):
        assert shell(book, f"inferlab metrics nowhere {where}").returncode == 2
    done = shell(book, "inferlab metrics 日本.jsonl --json 2>/dev/full")
    assert done.returncode == 0 and json.loads(done.stdout)


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_a_locale_that_is_not_utf_8(book, locale):
    done = shell(book, "inferlab metrics 日本.jsonl && inferlab report", **locale)
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(book, "inferlab metrics nowhere日本.jsonl", **locale)
    assert done.returncode == 2 and "no such file" in the_error(done.stderr)


def in_terminal(book, columns, *arguments):
    """What the command writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        book.command(*arguments),
        cwd=book.root,
        env=book.environment(COLUMNS=str(columns), TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is gone
            break
        text += chunk
    os.close(ours)
    assert process.wait(timeout=30) == 0
    return text.decode()


def test_a_very_narrow_terminal_loses_nothing(book):
    text = in_terminal(book, 20, "metrics", "日本.jsonl")
    for words in ("TTFT, from scheduled", "guidellm", "100 ms", "66.7"):
        assert words in text
    text = in_terminal(book, 20, "report")
    assert "oom" in text and "…" not in text  # long names are folded, not cut


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize(
    ("verb", "query", "answer"),
    [
        ("doctor --no-probe --json", ".findings | length > 9", "true"),
        ("metrics 日本.jsonl --json", ".inferlab.counts.ok", "1"),
        ("status --json", 'map(select(.state != "missing")) | length', "1"),
        ("report --json", "map(.n) | max", "6"),
        ("run 77 --json", ".", ""),
        ("run 90 --budget-minutes 1 --json", ".[0].outcome", '"measured"'),
        ("measure --model gpt-5 --json", ".", ""),
    ],
)
def test_json_into_jq(book, verb, query, answer):
    shutil.move(book.root / "labs" / f"{LAB}.ipynb", book.root / "labs" / "91_example.ipynb")
    book.lab("") if verb.startswith("run 90") else book.lab("", LAB)
    done = shell(book, f"inferlab {verb} | jq -c '{query}'")
    assert (done.returncode, done.stdout.strip()) == (0, answer), done.stderr

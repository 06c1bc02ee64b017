"""`inferlab measure --step`: modes of a decode step beside one another, refused before loading."""

import json

import pytest
from tiny_models import tiny

from inferlab import fitting
from inferlab.cli import app
from inferlab.decoding.compiled import why_no_compiler
from inferlab.models import config

SMALL = tiny("tiny-step", num_layers=1)
ARGUMENTS = [
    "measure", "--model", SMALL.name, "--weights", "random", "--batch-size", "1", "--dtype",
    "float32", "--prompt-len", "5", "--output-len", "4", "--rounds", "3", "--time-cap-s", "0.1",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setitem(config.PRESETS, SMALL.name, SMALL)
    monkeypatch.setattr(fitting, "fit_shapes", lambda *_: [fitting.Shape(1, n, 4) for n in (3, 9)])

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.main([*ARGUMENTS, *arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


@pytest.mark.skipif(bool(why_no_compiler()), reason=f"torch.compile: {why_no_compiler()}")
def test_steps_are_measured_beside_each_other_and_named(run, tmp_path):
    code, out, err = run("--step", "eager,compile", "--json", "--save-trace", str(tmp_path))
    assert code == 0, err
    cases = [json.loads(line) for line in out.splitlines()]
    assert [case["step"] for case in cases] == ["eager", "compile"]
    assert [case["case"] for case in cases] == [
        "torch-tiny-step-float32-b1-p5-o4", "torch-tiny-step-float32-compile-b1-p5-o4"
    ]  # fmt: skip
    for case in cases:
        assert case["predicted"]["tpot_s"] > 0 and case["measured"]["tpot_s"]["median"] > 0
        meta = json.loads((tmp_path / f"{case['case']}.jsonl").read_text().splitlines()[0])
        assert meta["meta"]["step"] == case["step"]
    assert "step compile" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--step", "graph"), "step graph replays CUDA graphs"),
        (("--step", "eager,fast"), "unknown step 'fast'; known: eager, compile"),
        (("--backend", "hf", "--step", "compile"), "backend hf has no choice of steps"),
        (("--step", ","), "--step needs different values"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(run, monkeypatch, arguments, says):
    from inferlab import measure

    monkeypatch.setattr(measure, "load_backend", lambda *_a, **_k: pytest.fail("loaded"))
    code, out, err = run(*arguments, "--json")
    assert code == 2 and out == "" and says in err and err.count("\n") == 1

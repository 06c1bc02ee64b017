"""`inferlab measure --quant`: formats beside plain weights, each predicted, named in the JSON."""

import json

import pytest
from tiny_models import QUANTIZABLE

from inferlab import kernelfit, measure
from inferlab.cli import app
from inferlab.models import config

ARGUMENTS = [
    "measure", "--model", QUANTIZABLE.name, "--weights", "random", "--batch-size", "1,2",
    "--prompt-len", "5", "--output-len", "4", "--rounds", "3", "--time-cap-s", "0.1",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setitem(config.PRESETS, QUANTIZABLE.name, QUANTIZABLE)
    monkeypatch.setitem(kernelfit.FIT_ROWS, "cpu", (1, 3, 5))

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.main([*ARGUMENTS, *arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


def test_formats_are_measured_beside_plain_weights_and_predicted(run):
    code, out, err = run("--quant", "none,int8,int4-g32", "--json")
    assert code == 0, err
    cases = [json.loads(line) for line in out.splitlines()]
    assert [(case["format"], case["batch_size"]) for case in cases] == [
        (format, size) for format in (None, "int8", "int4-g32") for size in (1, 2)
    ]
    assert len({case["case"] for case in cases}) == 6
    assert cases[0]["case"] == "torch-tiny-64-bfloat16-b1-p5-o4"
    assert cases[2]["case"] == "torch-tiny-64-bfloat16-int8-b1-p5-o4"
    for case in cases:
        assert set(case["measured"]) == {"ttft_s", "tpot_s", "output_tok_per_s", "mbu_ratio"}
        assert set(case["measured"]) <= set(case["predicted"])
        assert all(value > 0 for value in case["predicted"].values())


def test_the_table_names_the_format(run):
    code, out, _ = run("--quant", "none,int8")
    assert code == 0 and "int8" in out and "MBU" in out


def test_plain_weights_are_fitted_as_before(run, monkeypatch):
    monkeypatch.setattr(measure.kernelfit, "fit_format", lambda *_: pytest.fail("no format"))
    assert run("--json")[0] == 0

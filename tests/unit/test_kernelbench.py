"""Operations and their variants: computed alike, compiled or left out with a line, and timed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from record_examples import write_lab

from inferlab import kernelbench, kernelcheck, kernelcost, kernelops, kernelprobes
from inferlab.errors import MeasurementError, UserError
from inferlab.kernelcompile import Compiled, Compiler
from inferlab.kernelspeed import Rates
from inferlab.models.config import get_config
from inferlab.profiles import PROFILES
from inferlab.recorder import Recorder
from inferlab.timing import StopRule

PROJECT = Path(__file__).resolve().parents[2]
SMALL = get_config("smollm2-135m")
TINY = kernelcheck.tiny(SMALL)
RATES = Rates(
    read=((1 << 18, 5e10),), copy=((1 << 18, 2e10),), numbers_per_s=1e9, exponentials_per_s=1e9,
    flops_per_s=1e11, launch_s={"eager": 1e-6, "product": 2e-6, "compile": 1e-5},
)  # fmt: skip


@pytest.mark.parametrize("operation", kernelops.CPU_VARIANTS)
@pytest.mark.parametrize(("dtype", "size", "batch_size"), [
    (torch.bfloat16, 37, 1), (torch.float32, 1, 3), (torch.bfloat16, 131, 2),
])  # fmt: skip
def test_separate_and_library_variants_compute_what_float64_does(
    operation, dtype, size, batch_size
):
    for variant in ("eager", "library", "compile"):  # the last one not compiled here
        if variant not in kernelops.CUDA_VARIANTS[operation]:
            continue
        inputs = kernelops.make_inputs(operation, SMALL, dtype, "cpu", size, batch_size)
        function = kernelops.function_of(operation, variant)
        checked = kernelcheck.check_variant(
            operation, variant, size, batch_size, inputs, lambda f=function, i=inputs: f(**i)
        )
        assert checked.passed, checked


def test_a_wrong_result_does_not_pass():
    inputs = kernelops.make_inputs("swiglu", TINY, torch.float32, "cpu", 5)
    right = kernelops.function_of("swiglu", "eager")

    def check(work):
        return kernelcheck.check_variant("swiglu", "eager", 5, 1, inputs, work).passed

    assert check(lambda: right(**inputs))
    assert not check(lambda: right(**inputs) * 1.001)
    assert not check(lambda: right(**inputs)[:4])
    assert not check(lambda: torch.full_like(right(**inputs), float("nan")))


def test_kernels_are_right_in_triton_s_interpreter():
    pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
    checked = kernelcheck.check_interpreted()
    assert [c.operation for c in checked] == list(kernelops.CUDA_VARIANTS)
    assert all(c.passed for c in checked), checked


def test_a_failing_or_missing_interpreter_is_one_line(monkeypatch, capsys):
    def answers(code, out, err=""):
        run = subprocess.CompletedProcess([], code, out, err)
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: run)

    answers(1, "", "Traceback\nValueError: no such tile")
    with pytest.raises(MeasurementError, match="interpreter: ValueError: no such tile"):
        kernelcheck.check_interpreted()
    answers(0, '{"why_not": "triton is not installed", "checked": []}')
    assert kernelcheck.check_interpreted() == []
    assert capsys.readouterr().err == (
        "note: the kernels are not checked here: triton is not installed\n"
    )


WITHOUT_COMPILER = """
import torch
from inferlab import kernelbench, kernelcheck
from inferlab.kernelcompile import Compiler
from inferlab.models.config import get_config

torch._inductor.config.cpp.cxx = ("no-such-compiler",)
torch._inductor.config.force_disable_caches = True
tiny = kernelcheck.tiny(get_config("smollm2-135m"))
found = kernelbench.compile_all(["swiglu", "add_rms_norm"], tiny, "bfloat16", "cpu", Compiler())
bench = kernelbench.Bench(tiny, "bfloat16", "cpu", None, found)
print(found, bench.variants("swiglu"), bench.variants("prefill_attention"))
"""


def test_without_a_compiler_one_line_and_no_rows():
    """In a process of its own: Inductor remembers for good that nothing could be compiled."""
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=PROJECT,
    )  # fmt: skip
    notes = [line for line in answer.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "Traceback" not in answer.stderr, answer.stderr
    assert notes[0].startswith("note: torch.compile does not work here (") and "g++" in notes[0]
    assert answer.stdout.split("\n")[0] == "{} ['eager'] ['eager', 'library']"


@pytest.mark.slow
def test_one_size_varies_in_compiled_code_and_the_result_is_right(capsys):
    torch._dynamo.reset()
    compiled = kernelbench.compile_all(["swiglu"], TINY, "float32", "cpu", Compiler())["swiglu"]
    assert capsys.readouterr().err == "" and compiled.compile_s > 0
    for size in (5, 17):
        inputs = kernelops.make_inputs("swiglu", TINY, torch.float32, "cpu", size)
        checked = kernelcheck.check_variant(
            "swiglu", "compile", size, 1, inputs, lambda i=inputs: compiled.function(**i)
        )
        assert checked.passed


def test_cases_say_what_they_move_and_are_timed(monkeypatch, tmp_path):
    write_lab(tmp_path, "90_example", "1")
    monkeypatch.setattr(kernelbench, "LEAST_SAMPLE_S", 1e-5)
    bench = kernelbench.Bench(TINY, "bfloat16", "cpu", RATES, {})
    cases = {}
    for operation in kernelops.CPU_VARIANTS:
        cases |= kernelbench.operation_cases(bench, "sizes", operation, (3,), 2)
    recorder = Recorder("90_example", {}, PROFILES["tiny"], labs_dir=tmp_path)
    record = recorder.measure("sizes", cases, StopRule(min_rounds=2, max_rounds=2))
    for case, info in record.manifest.cases.items():
        _, operation, variant, size = case.split("/")
        counted = kernelcost.cost(operation, variant, TINY, "bfloat16", int(size), 2)
        assert info.params["launches"] == counted.launches and not info.params["flushed"]
        assert info.predicted["moved_bytes"] == counted.bytes >= info.predicted["least_bytes"]
        seconds = info.predicted["launching_s"] + info.predicted["work_s"]
        assert info.predicted["time_s"] == pytest.approx(seconds)
        assert (record.values(case, "time_s") > 0).all()
        assert (record.values(case, "bandwidth_share_ratio") > 0).all()


def test_forms_of_a_function_are_timed_side_by_side(monkeypatch):
    monkeypatch.setattr(kernelbench, "LEAST_SAMPLE_S", 1e-5)
    bench = kernelbench.Bench(TINY, "bfloat16", "cpu", RATES, {})
    forms = {"eager": lambda x: x + x, "compile": lambda x: 2 * x}
    cases = kernelbench.form_cases(bench, "double", forms, {"x": torch.ones(3)}, 3)
    assert list(cases) == ["forms/double/eager/3", "forms/double/compile/3"]
    assert all(set(case.run()) == {"time_s"} and not case.predicted for case in cases.values())


def test_rates_are_measured_and_ascend(monkeypatch):
    monkeypatch.setitem(kernelprobes.WORKING_SETS, "cpu", (1 << 16, 1 << 18))
    monkeypatch.setattr(kernelprobes, "SAMPLE_S", 1e-4)
    kernelprobes.measure_rates.cache_clear()
    rates = kernelprobes.measure_rates("bfloat16", "cpu", 16, compiles=False)
    kernelprobes.measure_rates.cache_clear()
    assert (
        [size for size, _ in rates.read] == [size for size, _ in rates.copy] == [1 << 16, 1 << 18]
    )
    assert all(rate > 0 for _, rate in (*rates.read, *rates.copy))
    assert set(rates.launch_s) == {"eager", "product"} and not rates.overlaps
    assert min(rates.numbers_per_s, rates.exponentials_per_s, rates.flops_per_s) > 0


def test_what_predictions_are_made_from_is_recorded():
    cases = kernelbench.probe_cases(RATES, "bfloat16")
    values = {key: dict(case.run()) for key, case in cases.items()}
    assert values["probe/copy/262144"] == {"copy_bytes_per_s": 2e10}
    assert values["probe/launch/compile"] == {"launch_s": 1e-5}
    assert len(cases) == 1 + 1 + 3 + 3
    assert {case.params["phase"] for case in cases.values()} == {"probe"}
    found = kernelbench.compile_cases({"swiglu": Compiled(len, 1.5, 3, 2)})["compile/swiglu"].run()
    assert found == {"compile_s": 1.5, "num_loops": 3.0, "num_vector_loops": 2.0}


def test_questions_without_an_answer():
    for wrong in (
        lambda: kernelops.variants_of("softmax", "cpu"),
        lambda: kernelops.function_of("linear", "compile"),
        lambda: kernelops.make_inputs("softmax", TINY, torch.float32, "cpu", 4),
    ):
        with pytest.raises(UserError):
            wrong()
    assert kernelops.variants_of("linear", "cpu") == ()
    assert kernelops.operations_of("cpu") == list(kernelops.CPU_VARIANTS)

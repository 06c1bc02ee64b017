"""The ladder: every rung writes the same tokens, its operators are counted, its cost follows."""

import dataclasses

import pytest
import torch
from tiny_models import tiny

from inferlab import bench, kernels, launchprobes, stepbench, stepsizes
from inferlab.errors import MeasurementError, UserError
from inferlab.launchprobes import LaunchCosts, StepCounts
from inferlab.models.load import load_decoder
from inferlab.roofline import Ceilings
from inferlab.workload import uniform_batch

SHAPE = tiny("tiny-ladder")
COSTS = LaunchCosts(1e-6, 2e-6, 3e-6)
ON_GPU = LaunchCosts(1e-6, 4e-6, 5e-6, graph_s=1e-6)
WORK = bench.Shape(1, 9, 5)
LIMITS = Ceilings(1e10, 1e12)


@pytest.fixture(scope="module")
def ladder():
    found = stepbench.rungs("cpu")
    found.pop("compile")  # half a minute
    return found


@pytest.fixture(scope="module")
def backends(ladder):
    return stepbench.open_rungs(SHAPE, "float32", "cpu", "random", ladder)


def test_every_rung_changes_one_thing_of_one_before():
    for device in ("cpu", "cuda"):
        seen = []
        for rung in stepbench.RUNGS[device]:
            assert rung.before is None or rung.before in seen
            seen.append(rung.name)
        assert seen[0] == stepbench.HF and seen.index("compile") > seen.index("fixed")


def test_rungs_that_cannot_run_are_left_out(monkeypatch):
    monkeypatch.setattr(kernels, "why_unavailable", lambda device: "no Triton")
    assert not [name for name in stepbench.rungs("cuda") if "kernels" in name]
    monkeypatch.setattr(kernels, "why_unavailable", lambda device: None)
    assert "kernels-graph" in stepbench.rungs("cuda")
    assert "max-autotune" not in stepbench.rungs("cuda", max_autotune=False)


def test_every_rung_writes_the_same_tokens(backends):
    work = uniform_batch(SHAPE.vocab_size, 2, 11, 7, seed=3)
    written = stepbench.tokens_of(backends, work)
    assert set(written) == {"hf", "growing", "static", "packed", "fixed"}
    for tokens in written.values():
        assert tokens == written["hf"]
        assert stepbench.equal_ratio(tokens, written["hf"]) == 1.0


def test_unequal_tokens_are_counted():
    assert stepbench.equal_ratio([[1, 2], [3, 4]], [[1, 5], [3, 6]]) == 0.5


def test_hf_is_left_out_where_its_copy_does_not_fit(ladder):
    opened = stepbench.open_rungs(SHAPE, "float32", "cpu", "random", ladder, room_bytes=1000)
    assert "hf" not in opened and "fixed" in opened
    assert opened["static"].decoder.embedding is opened["growing"].decoder.embedding


def test_operators_of_a_step_do_not_depend_on_the_prompt(backends):
    one = stepbench.count_step(backends["static"])
    assert one == stepbench.count_step(backends["static"], bench.Shape(1, 20, 8))
    assert one.kernels == 0
    assert 20 * SHAPE.num_layers < one.operators < 60 * SHAPE.num_layers
    more = stepbench.count_step(backends["hf"])
    assert more.operators > one.operators


def test_too_short_a_shape_cannot_be_counted(backends):
    with pytest.raises(UserError, match="more than 2 tokens, not 2"):
        stepbench.count_step(backends["static"], bench.Shape(1, 1, 1))


def test_operators_called_by_compiled_code_are_counted():
    x = torch.randn(4, 4)

    def work():
        with torch.profiler.record_function("a region"):
            torch.relu(x @ x)

    assert launchprobes.count(work).operators == 2
    with pytest.raises(MeasurementError, match="no operator"):
        launchprobes.count(lambda: None)


def test_host_time_is_operators_or_kernels_times_their_cost():
    fixed, graph = (
        next(r for r in stepbench.RUNGS["cuda"] if r.name == name) for name in ("fixed", "graph")
    )
    counts = StepCounts(operators=700, kernels=400)
    assert stepbench.host_s(fixed, counts, ON_GPU) == pytest.approx(700 * 4e-6)
    assert stepbench.host_s(graph, counts, ON_GPU) == pytest.approx(400 * 1e-6)
    triton = dataclasses.replace(fixed, name="kernels", step="kernels")
    assert stepbench.host_s(triton, StepCounts(30, 210), ON_GPU) == pytest.approx(210 * 4e-6)


def test_what_moves_twice_is_expected_to(monkeypatch):
    cpu = {rung.name: rung for rung in stepbench.RUNGS["cpu"]}

    def bytes_of(name, dtype="bfloat16", device="cpu"):
        return stepbench.expected_cost(cpu[name], SHAPE, dtype, device, WORK)

    monkeypatch.setattr(stepbench, "can_pack", lambda number: number == torch.bfloat16)
    packed = bytes_of("packed")
    assert bytes_of("static").weight_bytes == 2 * packed.weight_bytes
    assert bytes_of("fixed") == bytes_of("compile") == packed
    assert bytes_of("growing").kv_read_bytes == 2 * packed.kv_read_bytes
    plain = bytes_of("static", "float32")
    assert plain == bytes_of("packed", "float32")
    assert bytes_of("static", device="cuda").weight_bytes == packed.weight_bytes


def test_a_case_of_the_ladder_states_floor_and_host_time(backends, ladder):
    counts = StepCounts(100)
    work = stepbench.workload_of(SHAPE, WORK, seed=2)
    reference = backends["hf"].run(work).token_ids
    case = stepbench.ladder_case(
        ladder["static"], backends["static"], WORK, "cpu", counts, COSTS, work, reference
    )
    assert case.predicted["host_s"] == pytest.approx(2e-4)
    expected = case.predicted["floor_s"] + 2e-4
    assert case.predicted["tpot_s"] == pytest.approx(expected)
    values = case.run()
    assert 0 < values["fastest_step_s"] <= values["tpot_s"] * 1.01
    assert 0 < values["floor_s"] < 1
    assert values["mbu_ratio"] == pytest.approx(values["floor_s"] / values["tpot_s"])
    assert values["equal_ratio"] == 1
    assert case.params["before"] == "growing" and case.params["operators"] == 100


def test_a_size_is_made_counted_and_timed(ladder):
    case = stepsizes.size_case(SHAPE, "float32", "cpu", ladder["packed"], 6, 4, COSTS, LIMITS)
    values = case.run()
    assert 0 < values["fastest_step_s"] <= values["step_s"]
    assert case.params["operators"] > 40 and case.params["read_bytes"] > 0
    assert case.predicted["host_s"] == pytest.approx(case.params["operators"] * 2e-6)


def test_a_prefill_is_not_in_a_step():
    decoder = load_decoder(SHAPE, "float32", "cpu", "random")
    cache = decoder.new_cache("static", 1, 12)
    with torch.inference_mode():
        decoder(torch.ones(1, 5, dtype=torch.int64), cache, torch.arange(5)[None])
    seconds = stepsizes.step_seconds(decoder, decoder, cache, 5, 3)
    assert len(seconds) == 3 and cache.length == 8


def test_costs_of_a_call_are_measured_once():
    costs = launchprobes.launch_costs("float32", "cpu")
    assert costs is launchprobes.launch_costs("float32", "cpu")
    assert 0 < costs.operator_s < 1e-3 and costs.graph_s is None

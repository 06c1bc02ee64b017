"""A cell is timed without a prompt: on a filled cache that every variant borrows."""

import pytest
import torch
from test_graphs import Captures
from tiny_models import tiny

from inferlab import quantbench
from inferlab.backends.torch import TorchBackend
from inferlab.decoding.steps import make_stepper
from inferlab.errors import UserError
from inferlab.models.load import load_decoder
from inferlab.models.projections import replace_weights
from inferlab.profiles import PROFILES
from inferlab.quant.formats import get_format
from inferlab.quantbench import (
    FilledCaches,
    cell_case,
    decode_trace,
    open_variants,
    products_case,
    step_metrics,
)
from inferlab.quantcost import KernelLaw, RestLaw

CONFIG = tiny("tiny-64", hidden_size=64, intermediate_size=128, num_q_heads=4, num_kv_heads=2,
              head_dim=16, vocab_size=64)  # fmt: skip


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(CONFIG, "float32", "cpu", "random")


def test_a_trace_of_steps_has_one_gap_for_each(decoder):
    caches = FilledCaches()
    trace = decode_trace(decoder, 3, 20, 4, caches)
    assert len(trace.requests) == 3 and len(trace.requests[0].events) == 5
    found = step_metrics(trace)
    assert found["fastest_step_s"] <= found["tpot_s"] and "ttft_s" not in found
    assert found["output_tok_per_s"] == pytest.approx(3 / found["tpot_s"])


def test_a_cache_is_lent_again_and_holds_the_context(decoder):
    caches = FilledCaches()
    first = caches.lend(decoder, 2, 10, 3)
    decode_trace(decoder, 2, 10, 2, caches)
    assert first.length == 13
    assert caches.lend(decoder, 2, 10, 3) is first and first.length == 10
    keys, values = first.update(0, *(torch.zeros(2, 2, 1, 16) for _ in range(2)))
    assert (keys[:, :, :10] == keys[0, 0, 0, 0]).all() and (values[:, :, :10] > 0).all()
    assert caches.lend(decoder, 1, 10, 3) is not first


def test_a_cell_says_what_it_is_and_what_is_expected(decoder):
    law, rest = KernelLaw(1e-3, 1e-4, False), RestLaw(2e-3, 0.0, 0.0)
    case = cell_case("int8", TorchBackend(decoder), 2, 8, 3, FilledCaches(), {"int8": law}, rest)
    assert case.params["format"] == "int8" and case.params["batch_size"] == 2
    assert case.predicted["tpot_s"] == pytest.approx(3.2e-3)
    assert case.predicted["products_s"] + case.predicted["rest_s"] == case.predicted["tpot_s"]
    assert case.run()["tpot_s"] > 0
    unknown = cell_case("int4-g32", TorchBackend(decoder), 2, 8, 3, FilledCaches(), {}, rest)
    assert unknown.predicted == {}


def test_products_run_on_any_kind_of_layer(decoder):
    low = load_decoder(CONFIG, "float32", "cpu", "random", pack=False)
    replace_weights(low, get_format("int4-g32"), "naive")
    for variant, model in (("bfloat16", decoder), ("int4-naive", low)):
        case = products_case(variant, model, 5)
        assert case.run()["products_s"] > 0 and case.params["rows"] == 5


def test_a_foreign_backend_reads_a_real_prompt(decoder):
    class Foreign:
        name, config, dtype = "onnx", CONFIG, "float32"

        def run(self, workload):
            assert workload.requests[0].prompt_len == 8 and workload.requests[0].output_len == 4
            return TorchBackend(decoder).run(workload)

    case = cell_case("int4-genai", Foreign(), 2, 8, 3, FilledCaches())
    assert case.predicted == {} and case.run()["tpot_s"] > 0


def test_what_cannot_be_opened_is_left_out_with_its_reason(monkeypatch, decoder):
    def opened(variant, model, dtype, device, weights):
        if variant.kernel == "torchao":
            raise UserError("no torchao here")
        return TorchBackend(decoder)

    monkeypatch.setattr(quantbench, "_open", opened)
    names = ("bfloat16", "int4-torchao")
    found, skipped = open_variants("smollm2-135m", "float32", "cpu", "random", names)
    assert list(found) == ["bfloat16"] and skipped == {"int4-torchao": "no torchao here"}


def test_without_a_baseline_there_is_nothing_to_compare(monkeypatch):
    def refuse(*_):
        raise UserError("no memory")

    monkeypatch.setattr(quantbench, "_open", refuse)
    with pytest.raises(UserError, match="cannot be opened on cpu: no memory"):
        open_variants("smollm2-135m", "float32", "cpu", "random")


def test_random_weights_do_not_go_to_another_runtime():
    with pytest.raises(UserError, match="real weights only"):
        quantbench._open(quantbench.VARIANTS["int4-genai"], "x", "bfloat16", "cpu", "random")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("deep", [False, True])
def test_no_cell_is_a_shape_that_predictions_are_fitted_on(profile, deep):
    found = quantbench.sweep(profile, deep)
    cells = {(b, s) for b in found.batch_sizes for s in found.context_lens}
    assert not cells & set(found.rest_shapes)
    assert set(found.probe_rows) & set(found.batch_sizes) <= {1}
    assert found.probed("int8") == found.probe_rows and len(found.probed("int8-naive")) == 2
    assert found.wants("int8", 1, found.context_lens[-1])
    assert found.wants("int8", found.batch_sizes[-1], found.context_lens[-1]) is found.is_full
    assert found.is_full or not deep
    assert not found.wants("int4-genai", 1, found.context_lens[-1])
    assert not found.wants("int8-naive", found.batch_sizes[1], found.context_lens[0])


def test_a_stepper_is_lent_the_cache_that_it_needs(decoder):
    caches, captures = FilledCaches(), Captures()
    graphed = make_stepper(decoder, "graph", captures)
    for _ in range(2):
        decode_trace(graphed, 2, 10, 3, caches)
    assert captures.count == 1 and type(caches.lend(graphed, 2, 10, 4)).__name__ == "BucketedCache"
    assert type(caches.lend(decoder, 2, 10, 4)).__name__ == "StaticCache"

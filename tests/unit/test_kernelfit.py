"""Products of a step, timed apart from the rest, and the steps that they predict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import QUANTIZABLE

from inferlab import bench, fitting, kernelfit
from inferlab.backends.base import load_backend
from inferlab.bench import Shape
from inferlab.errors import UserError
from inferlab.kernelfit import ProductFit, StepFit, StepProducts, fit_products
from inferlab.models.config import get_config
from inferlab.quant.formats import get_format
from inferlab.roofline import Ceilings, crossover_batch_size

SMOL = get_config("smollm2-135m")
INT8 = get_format("int8")
ROWS = kernelfit.FIT_ROWS["cpu"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for module, name in (
        (fitting, "_FITS"), (fitting, "_MEASURED"), (kernelfit, "_PRODUCTS"), (kernelfit, "_RESTS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, {})
    monkeypatch.setitem(kernelfit.FIT_ROWS, "cpu", (1, 3, 5))


@given(
    st.floats(1e-5, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 4, 16]),
    st.integers(1, 300),
)  # fmt: skip
def test_the_fit_recovers_the_law_that_made_the_times(once, tile, row, row_tile, rows):
    law = ProductFit(once, tile * once, row * once, row_tile)
    found = fit_products({r: law.seconds(r) for r in ROWS}, row_tile)
    assert found.seconds(rows) == pytest.approx(law.seconds(rows), rel=1e-3)
    assert min(found.once_s, found.tile_s, found.row_s) >= 0


def test_a_tile_costs_what_it_costs_however_full_it_is():
    law = ProductFit(1.0, 2.0, 0.0, 4)
    assert [law.seconds(rows) for rows in (1, 4, 5, 8, 9)] == [3, 3, 5, 5, 7]
    assert law.per_row_s == 0.5


@pytest.mark.parametrize("measured", [{}, {1: 1.0}, {0: 1.0, 3: 2.0}, {1: 0.0, 3: 1.0}])
def test_too_little_or_impossible_times_are_refused(measured):
    with pytest.raises(UserError, match="two numbers of rows"):
        fit_products(measured)


def test_rows_of_the_fit_are_odd_and_no_batch_size_of_a_lab():
    for rows in kernelfit.FIT_ROWS.values():
        assert all(count % 2 for count in rows) and len(set(rows)) == len(rows)


def test_ceilings_turn_the_products_around_where_they_cross():
    plain = StepProducts(ProductFit(9e-3, 0, 4e-4), ProductFit(2e-3, 0, 1e-4))
    low = StepProducts(ProductFit(3e-3, 4e-3, 3e-4, 4), ProductFit(1e-3, 1e-3, 1e-4, 4))
    found = crossover_batch_size(
        SMOL, "bfloat16", INT8,
        plain.ceilings(SMOL, "bfloat16"), low.ceilings(SMOL, "bfloat16", INT8),
    )  # fmt: skip
    assert 4 <= found <= 8
    assert low.seconds(4, 4) < plain.seconds(4, 4) and low.seconds(9, 9) > plain.seconds(9, 9)
    with pytest.raises(UserError, match="measure more rows"):
        flat = ProductFit(1.0, 0.0, 0.0)
        StepProducts(flat, flat).ceilings(SMOL, "bfloat16")


def test_the_products_of_a_step_are_those_of_its_layers_and_its_head():
    decoder = load_backend("torch", QUANTIZABLE, weights="random", quant="int8").decoder
    called = []
    for name, module in kernelfit.projections(decoder):
        module.register_forward_hook(lambda m, x, y, name=name: called.append((name, len(x[0]))))
    names = [name for name, _ in kernelfit.projections(decoder)]
    for part, expected in (("all", names), ("layers", names[:-1]), ("head", names[-1:])):
        called.clear()
        assert bench.projection_run(decoder, 7, part)()["step_s"] > 0
        assert called == [(name, 7) for name in expected]
    measured = kernelfit.measure_products(decoder, "head", rounds=1)
    assert list(measured) == [1, 3, 5]
    found = kernelfit.fit_step_products(decoder)
    assert found.layers.row_tile == found.head.row_tile == 4


def test_a_prediction_is_products_and_rest():
    config = SMOL
    products = StepProducts(ProductFit(3e-3, 0, 1e-4), ProductFit(1e-3, 0, 2e-4))
    wide = Ceilings(1e18, 1e18, overhead_s=1e-3, token_overhead_s=1e-5)  # no floor: overheads only
    fit = StepFit(products, fitting.Fitted(prefill=wide, decode=wide))

    class Fake:
        dtype, weight_format, kept = "bfloat16", INT8, ()

    Fake.config = config
    shape = Shape(4, 10, 5)
    found = kernelfit.predict(Fake, shape, fit)
    ttft_s = 3e-3 + 40e-4 + 1e-3 + 4 * 2e-4 + 1e-3 + 40 * 1e-5
    tpot_s = 3e-3 + 4e-4 + 1e-3 + 4 * 2e-4 + 1e-3 + 4 * 1e-5
    assert found["ttft_s"] == pytest.approx(ttft_s, rel=1e-6)
    assert found["tpot_s"] == pytest.approx(tpot_s, rel=1e-6)
    assert found["output_tok_per_s"] == pytest.approx(20 / (ttft_s + 4 * tpot_s), rel=1e-6)
    plain = bench.predict(config, "bfloat16", shape, wide, wide)
    assert list(found) == list(plain) and found["decode_memory_s"] < plain["decode_memory_s"]


def test_a_format_is_fitted_once_and_without_running_a_quantized_step(monkeypatch):
    backend = load_backend("torch", QUANTIZABLE, weights="random", quant="int4-g32")
    monkeypatch.setattr(backend, "run", lambda workload: pytest.fail("a quantized step was run"))
    first = kernelfit.fit_format(backend, "cpu")
    monkeypatch.setattr(kernelfit, "fit_step_products", lambda *_: pytest.fail("fitted again"))
    assert kernelfit.fit_format(backend, "cpu") == first
    found = kernelfit.predict(backend, Shape(2, 9, 4), first)
    assert found["tpot_s"] > 0 and found["ttft_s"] > 0


def test_other_formats_and_kernels_are_fitted_apart():
    options = [{}, {"quant": "int8"}, {"quant": "int8", "kernel": "naive"},
               {"quant": "int8", "keep": ("head",)}]  # fmt: skip
    backends = [load_backend("torch", QUANTIZABLE, weights="random", **o) for o in options]
    keys = {fitting._key(backend, "cpu") for backend in backends}
    assert len(keys) == 4
    assert ("torch", QUANTIZABLE, "bfloat16", "cpu") in keys
    assert fitting.fit_backend(backends[1], "cpu").decode.overhead_s >= 0

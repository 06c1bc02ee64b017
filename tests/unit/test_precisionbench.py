"""Every format that a machine can run is timed in both phases; the others say why they are not."""

import pytest
import torch
from tiny_models import tiny

from inferlab import precisionbench as pb
from inferlab import precisioncost as pc
from inferlab.backends.torch import TorchBackend
from inferlab.compression.lowprecision import LINEARS, replace_linears
from inferlab.compression.observe import observe
from inferlab.errors import UserError
from inferlab.models.layers import Projection
from inferlab.models.load import load_decoder
from inferlab.models.projections import projections
from inferlab.quant.linear8 import FP8Linear, W8A8Linear
from inferlab.quantbench import FilledCaches
from inferlab.quantcost import RestLaw
from inferlab.roofline import Ceilings

CONFIG = tiny("tiny-64", hidden_size=64, intermediate_size=128, num_q_heads=4, num_kv_heads=2,
              head_dim=16, vocab_size=64)  # fmt: skip
IDS = torch.arange(256).view(4, 64) % 61


def line(read_s, row_s):
    return pc.RowsCurve((1, 48), (read_s + row_s, read_s + 48 * row_s))


LAWS = {name: pc.PhaseLaws(line(1e-3, 1e-5), line(1e-4, 1e-6))
        for name in ("bfloat16", "autocast", "autocast-kept", "w8a8")}  # fmt: skip
RESTS = {"prefill": RestLaw(1e-3, 0.0, 0.0), "decode": RestLaw(1e-3, 0.0, 0.0)}


def plain(dtype="float32"):
    return load_decoder(CONFIG, dtype, "cpu", "random", pack=False)


@pytest.fixture(scope="module")
def opened():
    return pb.open_variants(CONFIG, "cpu", "random", IDS)


def test_what_has_no_kernel_says_so_and_is_counted(opened):
    variants, skipped = opened
    assert set(variants) | set(skipped) == set(pb.VARIANTS)
    assert set(skipped) == {"fp8-tensor", "fp8-row"}
    assert all("only its quality" in why for why in skipped.values())


def test_float32_weights_are_there_once(opened):
    variants, _ = opened
    exact = variants["float32"].decoder
    assert (
        variants["autocast"].decoder.decoder is variants["autocast-kept"].decoder.decoder is exact
    )


@pytest.mark.parametrize(
    "name", ["bfloat16", "float16", "autocast", "autocast-kept", "w8a8-static"]
)
def test_both_phases_and_their_products_are_timed(opened, name):
    backend, caches = opened[0][name], FilledCaches()
    cases = [
        pb.prefill_case(name, backend, 2, 7),
        pb.decode_case(name, backend, 2, 9, 2, caches),
        pb.products_case(name, backend, "layers", 3),
        pb.products_case(name, backend, "head", 1),
    ]
    metrics = [case.run() for case in cases]
    assert [next(iter(found)) for found in metrics] == ["ttft_s", "tpot_s", *["products_s"] * 2]
    assert all(value > 0 for found in metrics for value in found.values())
    assert [case.params["phase"] for case in cases] == ["prefill", "decode", *["products"] * 2]


def test_predictions_and_floors_are_stated(opened):
    limits = Ceilings(1e10, 1e11)
    base, other = (opened[0][name] for name in ("bfloat16", "w8a8"))
    expected = {"ceilings": limits, "laws": LAWS, "rests": RESTS}
    case = pb.prefill_case("bfloat16", base, 2, 8, **expected)
    assert case.predicted["ttft_s"] == pytest.approx(1e-3 + 16e-5 + 1e-4 + 2e-6 + 1e-3)
    assert {"memory_s", "compute_s"} <= set(case.predicted)
    case = pb.decode_case("w8a8", other, 2, 8, 1, FilledCaches(), **expected)
    assert set(case.predicted) == {"tpot_s"}
    assert not pb.decode_case("int8", other, 2, 8, 1, FilledCaches(), **expected).predicted


def test_the_first_pass_of_a_kept_block_converts_everything(opened):
    laws = LAWS | {"autocast": pc.PhaseLaws(line(9e-3, 0.0), LAWS["w8a8"].head)}
    case = pb.prefill_case("autocast-kept", opened[0]["autocast-kept"], 1, 4, None, laws, RESTS)
    assert case.predicted["ttft_s"] > 9e-3


def test_the_rest_is_fitted_on_shapes_of_its_own():
    cases = pb.rest_cases(TorchBackend(plain("bfloat16")), "cpu", FilledCaches())
    assert len(cases) == 6 and {c.params["phase"] for c in cases.values()} == set(pc.METRICS)
    for device in ("cpu", "cuda"):
        rows = pb.probe_rows(device, "layers", 512)
        assert not set(rows) & {32, 128, 512} and rows[-1] >= 384
        assert pb.probe_rows(device, "layers", 4)[-1] <= 12
        assert len(pb.probe_rows(device, "head", 512)) >= 3


@pytest.mark.parametrize("linear", LINEARS)
def test_projections_are_replaced_but_for_the_head(linear):
    decoder = replace_linears(plain("bfloat16"), linear, IDS)
    kinds = {type(module) for name, module in projections(decoder) if name != "head"}
    assert len(kinds) == 1 and Projection not in kinds
    assert isinstance(decoder.head, Projection)
    if linear.startswith("w8a8"):
        assert kinds == {W8A8Linear}
        assert decoder.layers[0].mlp.down.mode == ("static" if "static" in linear else "dynamic")
        assert decoder.layers[0].mlp.down.fused == ("unfused" not in linear)
    if linear.startswith("fp8"):
        assert kinds == {FP8Linear} and decoder.layers[0].mlp.down.emulated
    logits = decoder(IDS[:1, :5], decoder.new_cache("none", 1, 0), torch.arange(5)[None])
    assert torch.isfinite(logits).all()


def test_static_scales_are_the_ranges_that_were_observed():
    decoder = plain()
    stats = observe(decoder, IDS)
    static = replace_linears(plain(), "w8a8-static", stats=stats)
    expected = float(stats["layers.1.mlp.down"].absmax.max()) / 127
    assert static.layers[1].mlp.down.input_scale == pytest.approx(expected)


def test_bad_requests_change_nothing():
    decoder = plain()
    with pytest.raises(UserError, match="unknown linear"):
        replace_linears(decoder, "w3a3")
    with pytest.raises(UserError, match="calibration"):
        replace_linears(decoder, "w8a8-static")
    with pytest.raises(UserError, match="too few"):
        replace_linears(decoder, "w8a8-static", IDS[:1])
    decoder.layers[1].mlp.down.weight[0, 0] = torch.nan
    with pytest.raises(UserError):
        replace_linears(decoder, "w8a8")
    assert all(isinstance(module, Projection) for _, module in projections(decoder))

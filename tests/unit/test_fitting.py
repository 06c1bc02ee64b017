"""The overhead of a backend: fitted once, on shapes that are nobody's case, within the model."""

from dataclasses import replace

import pytest
from tiny_models import TINY

from inferlab import fitting
from inferlab.backends.base import load_backend
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost
from inferlab.models.layers import can_pack
from inferlab.roofline import floor_s, predict_s

CONFIG = next(iter(TINY.values()))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(fitting, "_FITS", {})


def test_a_fit_predicts_at_least_the_floor():
    fitted = fitting.fit_model("torch", CONFIG, "float32", "cpu")
    cost = decode_cost(CONFIG, "float32", 3, 17)
    assert predict_s(cost, fitted.decode, 3) >= floor_s(cost, fitted.decode)
    assert fitted.prefill.overhead_s >= 0 and fitted.decode.token_overhead_s >= 0


def test_a_backend_is_fitted_once(monkeypatch):
    backend = load_backend("torch", CONFIG, "float32", "cpu", weights="random")
    first = fitting.fit_backend(backend, "cpu")
    monkeypatch.setattr(fitting, "_fit", lambda *_: pytest.fail("fitted again"))
    assert fitting.fit_backend(backend, "cpu") is first
    assert fitting.fit_model("torch", CONFIG, "float32", "cpu") is first


@pytest.mark.parametrize("limit", [32, 64, 8192])
def test_the_shapes_stay_within_the_model(limit):
    config = replace(get_config("smollm2-135m"), max_context_len=limit)
    shapes = fitting.fit_shapes(config, "cpu")
    assert all(s.prompt_len + s.output_len <= limit for s in shapes)
    assert len({(s.batch_size, s.prompt_len) for s in shapes}) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_weights_are_fitted_apart_where_they_could_be_packed(dtype):
    plain, packed = (
        load_backend("torch", CONFIG, dtype, "cpu", weights="random", pack=pack)
        for pack in (False, True)
    )
    differ = fitting._key(plain, "cpu") != fitting._key(packed, "cpu")
    assert differ == plain.is_plain == can_pack(plain.decoder.dtype)
    assert not packed.is_plain

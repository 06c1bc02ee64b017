"""The packed layouts: every code in its place, no byte more than the format says."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab import kernels
from inferlab.kernels import reference
from inferlab.quant.formats import get_format
from inferlab.quant.grid import quantize


def codes_of(bits, channels, inputs, seed=0):
    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half, (channels, inputs), generator=generator, dtype=torch.int8)


shapes = {"channels": st.integers(1, 70), "inputs": st.integers(1, 400), "seed": st.integers(0, 99)}


@given(**shapes)
def test_unpacking_gives_the_codes_back(channels, inputs, seed):
    codes = codes_of(4, channels, inputs, seed)
    assert torch.equal(reference.unpack_int4(reference.pack_int4(codes), inputs), codes)
    codes = codes_of(8, channels, inputs, seed)
    assert torch.equal(reference.unpack_int8(reference.pack_int8(codes), inputs), codes)


@given(
    block=st.integers(0, 2), channel=st.integers(0, 4), j=st.integers(0, 15), i=st.integers(0, 3),
    h=st.integers(0, 1),
)  # fmt: skip
def test_each_4_bit_code_lies_where_the_kernel_looks(block, channel, j, i, h):
    codes = codes_of(4, 5, 384)
    word = reference.pack_int4(codes)[block, channel, j].item()
    place = 128 * block + 32 * i + 2 * j + h
    assert (word >> (4 * i + 16 * h)) & 15 == codes[channel, place].item() + 8


@given(
    block=st.integers(0, 2), channel=st.integers(0, 4), j=st.integers(0, 31), i=st.integers(0, 1),
    h=st.integers(0, 1),
)  # fmt: skip
def test_each_8_bit_code_lies_where_the_kernel_looks(block, channel, j, i, h):
    codes = codes_of(8, 5, 384)
    word = reference.pack_int8(codes)[block, channel, j].item()
    place = 128 * block + 64 * i + 2 * j + h
    assert (word >> (8 * i + 16 * h)) & 255 == codes[channel, place].item() & 255


@pytest.mark.parametrize(("group_size", "groups"), [(32, 9), (64, 5), (128, 3), (0, 1)])
def test_scales_and_offsets_come_back(group_size, groups):
    scales, offsets = torch.rand(2, 7, groups).bfloat16().float()
    grids = reference.pack_grids(scales, offsets, group_size)
    found = reference.unpack_grids(grids, groups)
    assert torch.equal(found[0], scales) and torch.equal(found[1], offsets)
    # whole blocks of 128 inputs, so that the kernel never reads past the last group
    assert grids.shape[0] * (group_size or 128) % 128 == 0
    symmetric = reference.unpack_grids(reference.pack_grids(scales, None, group_size), groups)
    assert torch.equal(symmetric[0], scales) and not symmetric[1].any()


@pytest.mark.parametrize("name", ["int4-g32", "int4-g64", "int4-g128"])
def test_an_asymmetric_format_takes_the_bytes_that_it_states(name):
    quantized = quantize(torch.randn(32, 256), get_format(name))
    words = reference.pack_int4(quantized.codes)
    grids = reference.pack_grids(quantized.scales, quantized.offsets, quantized.format.group_size)
    assert 4 * (words.numel() + grids.numel()) == quantized.format.matrix_bytes(32, 256)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-sym", "int4-channel", "int8", "int8-asym"])
def test_the_reference_product_is_that_of_the_dequantized_weights(name):
    quantized = quantize(torch.randn(24, 96), get_format(name))
    x = torch.randn(5, 96)
    found = reference.multiply(x, quantized.codes, quantized.scales, quantized.offsets)
    expected = x.double() @ quantized.dequantize().double().t()
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_cpu_has_no_triton_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if importlib.util.find_spec("triton"):
        assert "run on a GPU" in kernels.why_unavailable("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "triton is not installed" in kernels.why_unavailable("cpu")


@pytest.mark.parametrize("version", ["2.3.1", "3.5.1+git0a1b2c"])
def test_a_triton_too_old_is_refused(monkeypatch, version):
    triton = pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
    monkeypatch.setattr(triton, "__version__", version)
    assert f"triton {version} is too old: install triton 3.6" in kernels.why_unavailable("cuda")
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "run on a GPU" in kernels.why_unavailable("cpu")


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.why_unavailable("cuda") == "no CUDA device is usable"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "8.0 or newer" in kernels.why_unavailable("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert kernels.why_unavailable(torch.device("cuda")) is None

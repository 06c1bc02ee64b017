"""The Triton kernels: in the interpreter, in a process of its own, and through the compiler."""

import re

import pytest
from interpreter import check_interpreted

pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
LEAST_CAPABILITY, HOPPER = 80, 90


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_kernels_in_the_interpreter():
    check_interpreted("interpreted_kernels.py")


def product(kind, capability, groups, block_n, block_m, warps, stages, split):
    from compiled_kernels import compile_kernel

    from inferlab.kernels import w4a16, w8a16

    own = {"GROUPS": groups, "SPAN": 1} if kind == "w4a16" else {"HAS_OFFSETS": groups > 1}
    function = (w4a16 if kind == "w4a16" else w8a16)._multiply
    return compile_kernel(
        function, capability, warps, **own, WHOLE_BLOCKS=True, SPLIT=split, BLOCK_N=block_n,
        BLOCK_M=block_m, STAGES=stages,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["w4a16", "w8a16"])
@pytest.mark.parametrize(
    ("groups", "block_n", "block_m", "warps", "stages", "split"),
    [(1, 128, 8, 4, 4, True), (4, 128, 16, 4, 4, True), (1, 128, 64, 8, 3, False)],
)
def test_products_unpack_in_registers(
    kind, groups, block_n, block_m, warps, stages, split, tmp_path
):
    import triton
    from compiled_kernels import inner_loop

    if not triton.__version__.startswith("3.6."):
        pytest.skip("the instructions were counted with triton 3.6")
    compiled = product(kind, HOPPER, groups, block_n, block_m, warps, stages, split)
    loop = inner_loop(compiled, tmp_path)
    text = "\n".join(loop)
    assert re.search(r"\bH?G?MMA\b", text), "no tensor cores"
    assert not re.search(r"\bSTS\b|\bSTSM\b", text), "weights go through shared memory"
    assert not re.search(r"\bLDL\b|\bSTL\b", text), "registers are spilled"
    assert "LDGSTS" in text, "codes are not copied ahead of their use"
    # Beyond about 4 instructions a weight, an H200 would wait for them and not for memory.
    instructions = len(loop) * warps * 32 / (block_n * 128)
    assert instructions < (4.0 if block_m <= 16 else 5.0), f"{instructions:.2f} a weight"


@pytest.mark.parametrize("kind", ["w4a16", "w8a16"])
def test_products_compile_for_the_oldest_gpu(kind):
    compiled = product(kind, LEAST_CAPABILITY, 2, 64, 16, 4, 3, True)
    assert "mma.sync" in compiled.asm["ptx"] and "atom.global.gpu.acq_rel" in compiled.asm["ptx"]


def test_the_share_of_a_split_is_written_before_it_is_counted():
    ptx = product("w4a16", HOPPER, 1, 128, 8, 4, 4, True).asm["ptx"]
    counted = ptx.index("atom.global.gpu.acq_rel.add")
    written = ptx.rindex("st.global", 0, counted)
    assert "bar.sync" in ptx[written:counted] and "ld.global.cg" in ptx[counted:]


def test_the_other_kernels_compile():
    from compiled_kernels import compile_kernel

    from inferlab.kernels import quantize_rows, w4a16, w8a16

    rows = {"STATIC": False, "NORM": True, "WHOLE": True, "BLOCK": 4096}
    assert "cvt" in compile_kernel(quantize_rows._quantize, LEAST_CAPABILITY, 8, **rows).asm["ptx"]
    rows = {"STATIC": True, "NORM": False, "WHOLE": False, "BLOCK": 1024}
    ptx = compile_kernel(
        quantize_rows._quantize, HOPPER, types={"codes": "*fp8e4nv", "x": "*fp32"}, **rows
    ).asm["ptx"]
    assert "e4m3x2" in ptx
    compile_kernel(quantize_rows._scale, LEAST_CAPABILITY, SINGLE=True, BLOCK=1024)
    compile_kernel(w4a16._dequantize, LEAST_CAPABILITY, GROUPS=4, SPAN=1, BLOCK_N=64)
    compile_kernel(w8a16._dequantize, LEAST_CAPABILITY, HAS_OFFSETS=True, BLOCK_N=64)

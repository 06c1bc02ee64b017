"""The attention kernels: in the interpreter, in a process of its own, and through the compiler."""

import re

import pytest
from interpreter import check_interpreted

pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
LEAST_CAPABILITY, HOPPER = 80, 90
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of a multiprocessor, for one program
HEADS = ("queries", "keys", "values", "mixed")
TYPES = {
    **dict.fromkeys(HEADS, "*bf16"), "lengths": "*i32", "tables": "*i32", "shares": "*fp32",
    "logs": "*fp32", "counters": "*i32", "scale": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_attention_in_the_interpreter():
    check_interpreted("interpreted_attention.py")


def decode(capability, head_dim, places, repeats=4, pointers="*bf16"):
    from compiled_kernels import compile_kernel

    from inferlab.kernels import split_kv

    return compile_kernel(
        split_kv._decode, capability, split_kv.NUM_WARPS,
        types=TYPES | dict.fromkeys(HEADS, pointers), REPEATS=repeats, HEAD=head_dim, PLACES=places,
        ROWS=16, BLOCK_S=split_kv.TILE_BYTES // (4 * head_dim), BLOCK_D=head_dim,
        STAGES=5 if places else 3, OVERLAP=capability >= HOPPER,
    )  # fmt: skip


def flash(capability, head_dim, causal=True, pointers="*bf16"):
    from compiled_kernels import compile_kernel

    from inferlab.kernels import flash_attention

    tile = flash_attention.choose_tile(4096, head_dim, 2)
    return compile_kernel(
        flash_attention._flash, capability, tile.num_warps,
        types=TYPES | dict.fromkeys(HEADS, pointers), REPEATS=4, CAUSAL=causal, HEAD=head_dim,
        BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, BLOCK_D=head_dim, STAGES=3,
    )  # fmt: skip


def products(compiled, folder, unit):
    """The text of each loop that multiplies on the tensor cores, the shortest first."""
    from compiled_kernels import loops

    found = [body for body in loops(compiled, folder) if re.search(rf"\b{unit}\b", "\n".join(body))]
    assert found, f"no {unit} in any loop"
    return ["\n".join(body) for body in sorted(found, key=len)]


def check_loop(text):
    assert not re.search(r"\bLDL\b|\bSTL\b", text), "registers are spilled"
    assert re.search(r"LDGSTS\S*\.128", text), "not copied ahead of use in pieces of 16 bytes"
    assert not re.search(r"\bLDG\b", text), "waits for memory"


@pytest.mark.parametrize("capability", [LEAST_CAPABILITY, HOPPER])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("places", [0, 8, 16, 128])
def test_decode_keeps_memory_busy(capability, head_dim, places, tmp_path):
    from inferlab.kernels import split_kv

    compiled = decode(capability, head_dim, places)
    (text,) = products(compiled, tmp_path, "HMMA")
    check_loop(text)
    assert compiled.metadata.shared >= 2 * split_kv.TILE_BYTES, "fewer than two tiles under way"
    assert compiled.metadata.shared <= SHARED_BYTES[capability] // split_kv.RESIDENT - 1024
    # A tile takes an H200 about 1800 cycles to read on each multiprocessor, and each of its four
    # schedulers issues the instructions of one warp.
    assert text.count("\n") < 900, f"{text.count(chr(10))} instructions for a tile"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_multiplies_on_the_tensor_cores(head_dim, causal, tmp_path):
    for body in products(flash(HOPPER, head_dim, causal), tmp_path, "HGMMA"):
        check_loop(body)
    unmasked, *_ = products(flash(LEAST_CAPABILITY, head_dim, causal), tmp_path, "HMMA")
    check_loop(unmasked)


def test_only_the_diagonal_is_masked(tmp_path):
    unmasked, masked = products(flash(HOPPER, 128), tmp_path, "HGMMA")
    assert unmasked.count("FSEL") < masked.count("FSEL")


def test_the_share_of_a_split_is_written_before_it_is_counted():
    ptx = decode(HOPPER, 128, 16).asm["ptx"]
    counted = ptx.index("atom.global.gpu.acq_rel.add")
    written = ptx.rindex("st.global", 0, counted)
    assert "bar.sync" in ptx[written:counted] and "ld.global.cg" in ptx[counted:]


@pytest.mark.parametrize("pointers", ["*fp16", "*fp32"])
def test_other_dtypes_compile(pointers):
    ptx = decode(LEAST_CAPABILITY, 64, 16, 3, pointers).asm["ptx"]
    assert ("mma.sync" in ptx) == (pointers == "*fp16"), "float32 is not to be cut to tf32"
    assert "f16" in flash(HOPPER, 64, pointers="*fp16").asm["ptx"]


def test_splits_fill_the_gpu_and_leave_each_some_work():
    from inferlab.kernels.split_kv import MOST_SPLITS, choose_splits

    assert choose_splits(8, 8192, 64, 132) * 8 in range(240, 265), "fills an H200 once"
    assert choose_splits(8, 640, 64, 132) == 10, "a short cache: a tile each"
    assert choose_splits(64, 8192, 64, 132) == 16, "several times over, eight tiles each"
    assert choose_splits(256, 16384, 64, 132) == 16, "not more than sixteen times over"
    assert choose_splits(4096, 8192, 64, 132) == 1
    assert choose_splits(1, 2**20, 64, 132) == MOST_SPLITS.value
    assert choose_splits(8, 1, 64, 132) == 1


@pytest.mark.parametrize(("room", "stages"), [(99, 2), (163, 3), (227, 3), (64, 1)])
def test_steps_under_way_fit_the_memory_of_a_multiprocessor(room, stages, monkeypatch):
    """Two programs of 32 KB a step beside 8 KB; kilobytes of RTX 30/40, A100, H200, older."""
    from types import SimpleNamespace

    import torch
    import triton

    from inferlab.kernels.online_softmax import stages_that_fit

    answer = {"max_shared_mem": room * 1024}
    utils = SimpleNamespace(get_device_properties=lambda _index: answer)
    driver = SimpleNamespace(utils=utils)
    monkeypatch.setattr(type(triton.runtime.driver), "active", driver)
    asked = torch.device("cuda", room)  # remembered by device
    assert stages_that_fit(asked, 32768, 8192, programs=2) == stages

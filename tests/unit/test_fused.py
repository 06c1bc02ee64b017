"""The fused kernels: in the interpreter, in a process of its own, and through the compiler."""

import re

import pytest
from interpreter import check_interpreted

pytest.importorskip("triton", reason="triton is not installed: `make env` installs it")
INTERPRETED = ("interpreted_fused.py", "interpreted_decoder.py")
GPUS = (80, 90)  # compute capability of the oldest that is served, and of Hopper
ACTIVATIONS = dict.fromkeys(
    ("x", "weight", "bias", "residual", "y", "normed", "total", "gate_up", "qkv", "cosines",
     "sines", "q_weight", "k_weight", "queries", "keys", "values"), "*bf16"
)  # fmt: skip
POINTERS = {
    **ACTIVATIONS, "slots": "*i64", "lengths": "*i32", "tables": "*i32", "mixed": "*bf16",
    "shares": "*fp32", "logs": "*fp32", "scale": "fp32",
}  # fmt: skip
ATTENTION = {"REPEATS": 4, "HEAD": 128, "PLACES": 0, "ROWS": 16, "BLOCK_S": 64, "BLOCK_D": 128,
             "STAGES": 3}  # fmt: skip
LARGEST_SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of one program


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", INTERPRETED)
def test_kernels_in_the_interpreter(name):
    check_interpreted(name)


def compiled(function, capability, warps=4, types=None, **constants):
    from compiled_kernels import compile_kernel

    return compile_kernel(
        function, capability, warps, types={**POINTERS, **(types or {})}, **constants
    )


def product(capability, tile, gated, block_m=8, types=None, **changes):
    from inferlab.kernels import linear

    block_n, block_k, warps, stages = tile
    constants = {
        "HAS_BIAS": False, "HAS_RESIDUAL": True, "GATED": gated, "WHOLE_BLOCKS": True,
        "SPLIT": True, "OVERLAP": capability >= 90, "BLOCK_N": block_n, "BLOCK_M": block_m,
        "BLOCK_K": block_k, "STAGES": stages,
    }  # fmt: skip
    return compiled(linear._multiply, capability, warps, types, **{**constants, **changes})


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("block_m", [8, 16])
def test_products_copy_weights_ahead_and_fit(gated, block_m, tmp_path):
    import triton
    from compiled_kernels import inner_loop

    from inferlab.kernels import linear

    for tile in linear.GATED_TILES if gated else linear.PLAIN_TILES:
        found = product(90, tile, gated, block_m, SPLIT=False)  # one loop to look at
        assert found.metadata.shared <= LARGEST_SHARED[90]
        if not triton.__version__.startswith("3.6."):
            continue  # the instructions were counted with triton 3.6
        text = "\n".join(inner_loop(found, tmp_path))
        assert re.search(r"\bH?G?MMA\b", text), "no tensor cores"
        assert text.count("LDGSTS") and not re.search(r"\bLDG\b", text), "not copied ahead"
        assert not re.search(r"\bLDL\b|\bSTL\b", text), "registers are spilled"
        weights = tile[0] * tile[1] * (1 + gated)
        instructions = text.count("\n") * tile[2] * 32 / weights
        assert instructions < 2.5, f"{tile}: {instructions:.2f} a weight"


@pytest.mark.parametrize("gated", [False, True])
def test_products_compile_for_the_oldest_gpu(gated):
    from inferlab.kernels import linear

    tile = (linear.GATED_TILES if gated else linear.PLAIN_TILES)[0]
    found = product(80, tile, gated, WHOLE_BLOCKS=False, HAS_BIAS=True)
    assert "mma.sync" in found.asm["ptx"] and "atom.global.gpu.acq_rel" in found.asm["ptx"]
    assert found.metadata.shared <= LARGEST_SHARED[80]


@pytest.mark.parametrize("capability", GPUS)
def test_products_of_float32_compile_without_cutting_digits(capability):
    from inferlab.kernels import linear

    types = dict.fromkeys(("x", "weight", "bias", "residual", "y"), "*fp32")
    for tile in linear.WIDE_TILES:
        found = product(capability, tile, True, types=types)
        assert "tf32" not in found.asm["ptx"]
        assert found.metadata.shared <= LARGEST_SHARED[capability]


def test_the_share_of_a_split_is_written_before_it_is_counted():
    from inferlab.kernels import linear

    ptx = product(90, linear.PLAIN_TILES[0], False).asm["ptx"]
    counted = ptx.index("atom.global.gpu.acq_rel.add")
    written = ptx.rindex("st.global", 0, counted)
    assert "bar.sync" in ptx[written:counted] and "ld.global.cg" in ptx[counted:]


@pytest.mark.parametrize("capability", GPUS)
def test_the_other_kernels_compile(capability):
    from inferlab.kernels import norm, rope_store, swiglu

    for add, rows, block in ((True, 1, 4096), (False, 4, 1024)):
        found = compiled(
            norm._add_rms_norm, capability, 8, ADD=add, ROWS=rows, BLOCK=block, OVERLAP=False
        )
        assert "ld.global.v4" in found.asm["ptx"] and "st.global.v4" in found.asm["ptx"]
    gates = {"BLOCK": 2048, "OVERLAP": False}
    assert "ld.global.v4" in compiled(swiglu._swiglu, capability, 8, **gates).asm["ptx"]
    for norms, keep, tokens, heads, half, warps in (
        (False, False, 1, 1, 64, 1), (True, True, 16, 4, 64, 4), (True, False, 1, 1, 32, 1)
    ):  # fmt: skip
        compiled(
            rope_store._rotate_and_store, capability, warps, NORM=norms, KEEP=keep, OVERLAP=False,
            TOKENS=tokens, HEADS=heads, HALF=half,
        )  # fmt: skip


def test_kernels_compile_where_a_size_is_one():
    """Triton makes a constant of an argument that is 1."""
    from inferlab.kernels import linear, norm, rope_store, swiglu

    for gated, tile in ((False, linear.PLAIN_TILES[0]), (True, linear.GATED_TILES[0])):
        product(90, tile, gated, num_rows=1, out_features=1)
    compiled(
        norm._add_rms_norm, 90, 1, ADD=True, ROWS=1, BLOCK=64, OVERLAP=True, num_rows=1, size=1
    )
    rotation = {"NORM": True, "KEEP": True, "TOKENS": 1, "HEADS": 1, "HALF": 1, "OVERLAP": True}
    compiled(
        rope_store._rotate_and_store, 90, 1, **rotation, num_rows=1, num_q=1, num_kv=1, block_size=1
    )
    compiled(swiglu._swiglu, 90, 1, BLOCK=64, OVERLAP=True, blocks=1, inner_size=1)


def test_an_early_kernel_reads_nothing_before_it_has_waited(tmp_path):
    """Prefetches aside, which read nothing into the program."""
    from compiled_kernels import machine_code

    from inferlab.kernels import linear, norm, rope_store, split_kv, swiglu

    rotation = {"NORM": True, "KEEP": False, "TOKENS": 1, "HEADS": 1, "HALF": 64}
    kernels = {
        "product": product(90, linear.PLAIN_TILES[0], False),
        "gated product": product(90, linear.GATED_TILES[0], True),
        "norm": compiled(norm._add_rms_norm, 90, 8, ADD=True, ROWS=1, BLOCK=4096, OVERLAP=True),
        "rotation": compiled(rope_store._rotate_and_store, 90, 1, OVERLAP=True, **rotation),
        "swiglu": compiled(swiglu._swiglu, 90, 8, BLOCK=2048, OVERLAP=True),
        "attention": compiled(split_kv._decode, 90, 4, OVERLAP=True, **ATTENTION),
    }
    for name, kernel in kernels.items():
        code = [line for _, line in machine_code(kernel, tmp_path)]
        waits = [at for at, line in enumerate(code) if "ACQBULK" in line]
        starts = [at for at, line in enumerate(code) if "PREEXIT" in line]
        memory = re.compile(r"\b(LDG|LDGSTS|STG|ATOMG)\b")
        reads = [at for at, line in enumerate(code) if memory.search(line)]
        assert len(waits) == len(starts) == 1 and starts[0] < waits[0] < min(reads), name
        asked = sum("CCTL.E.PF2" in line for line in code[: waits[0]])
        assert bool(asked) == (name in ("product", "gated product", "norm")), name


def test_kernels_overlap_only_where_the_gpu_can(monkeypatch):
    import torch

    from inferlab.kernels import overlap

    cpu, gpu = torch.device("cpu"), torch.device("cuda:7")
    assert overlap.launch_options(cpu) == {"OVERLAP": False}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert overlap.launch_options(gpu) == {"OVERLAP": False}  # nobody asked for it
    monkeypatch.setenv("INFERLAB_OVERLAP", "1")
    for capability, can in (((9, 0), True), ((10, 0), True), ((8, 9), False)):
        overlap._can_overlap.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert overlap.launch_options(gpu)["OVERLAP"] == can
    overlap._can_overlap.cache_clear()

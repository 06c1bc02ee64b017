"""Compile a Triton kernel for a GPU that is not there, and read what came out."""

import os
import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "x": "*bf16", "words": "*i32", "grids": "*i32", "y": "*bf16", "partials": "*fp32",
    "counters": "*i32", "scales": "*fp32", "offsets": "*fp32", "norm_weight": "*bf16",
    "codes": "*i8", "weights": "*bf16", "sums": "*i32", "row_scales": "*fp32",
    "channel_scales": "*fp32", "eps": "fp32", "least": "fp32", "largest": "fp32",
}  # fmt: skip
# Lengths and strides that are multiples of 16, as pointers are.
DIVISIBLE = {
    "out_features", "in_features", "x_stride", "stride", "residual_stride", "gate_span", "size",
    "inner_size", "qkv_stride", "cosines_stride", "sines_stride", "key_block_stride",
    "key_head_stride", "key_place_stride", "value_block_stride", "value_head_stride",
    "value_place_stride", "q_row", "q_token", "q_head", "k_row", "k_block", "k_group",
    "k_place", "v_row", "v_block", "v_group", "v_place",
}  # fmt: skip


def compile_kernel(function, capability, num_warps=4, types=None, **constants):
    """The compiled kernel; arguments are typed by their names, or by `types`."""
    names = function.arg_names
    known = {**POINTERS, **(types or {}), **dict.fromkeys(constants, "constexpr")}
    signature = {name: known.get(name, "i32") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in constants and (name in DIVISIBLE or signature[name].startswith("*"))
    }
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps}
    )


def inner_loop(compiled, folder):
    """Machine instructions of the largest loop, in order."""
    return max(loops(compiled, folder), key=len)


def loops(compiled, folder):
    """Machine instructions of each loop, in order."""
    code = machine_code(compiled, folder)
    bodies = []
    for place, line in code:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)
        if target and int(target[1], 16) < place:
            start = int(target[1], 16)
            bodies.append([line for at, line in code if start <= at <= place])
    return bodies


def machine_code(compiled, folder):
    """(place, instruction) of the whole kernel, in order."""
    cubin = Path(folder) / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    text = subprocess.run(
        [str(tools / "cuobjdump"), "--dump-sass", str(cubin)],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE)
    return [(int(place, 16), line) for place, line in found]

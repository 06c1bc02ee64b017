"""How can a model be written in other numbers and still compute the same function?

The residual stream has no preferred basis: with the norms' weights folded into the matrices that
read it, RMSNorm only divides by a length, which an orthogonal matrix Q keeps. Multiply what writes
the stream (embedding, attention's out, MLP's down) by Q and what reads it (qkv, gate and up, head)
by Q as well, and every logit stays: x W^T = (x Q)(W Q)^T. What changes is how hard the numbers are
to round.
Source: Ashkboos et al., "SliceGPT", 2024, section 3 (computational invariance), and "QuaRot", 2024.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from inferlab.errors import UserError
from inferlab.models.cachefolder import SOURCE_FILE, STAMP_FILE, new_folder
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.hf import to_hf_config
from inferlab.models.load import ensure_model, open_weights, resolve_config
from inferlab.models.placement import check_host_memory, torch_device, torch_dtype
from inferlab.quant.rotation import hadamard, random_orthogonal, random_permutation

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
READERS = {  # of each norm's output
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")  # add to the residual stream

# What each kind multiplies the residual stream with, after folding; "plain" changes nothing.
MATRICES: dict[str, Callable[[int, int], torch.Tensor] | None] = {
    "folded": None,
    "rotated": random_orthogonal,
    "hadamard": hadamard,
    "permuted": random_permutation,
}
KINDS = ("plain", *MATRICES)

Tensors = Mapping[str, torch.Tensor]


def equivalent_config(config: ModelConfig, kind: str) -> ModelConfig:
    """The shape of that kind of copy: with an untied head, unless it is the plain one."""
    if kind not in KINDS:
        raise UserError(f"unknown kind {str(kind)[:40]!r} of copy; known: {', '.join(KINDS)}")
    if kind == "plain":
        return config
    return replace(config, name=f"{config.name}-{kind}", tie_embeddings=False, source=None)


def fold_norms(tensors: Tensors, config: ModelConfig) -> tuple[ModelConfig, dict]:
    """Move each RMSNorm's weight into the columns of the matrices that read it; norms become 1.

    The head gets the final norm's weight, so that it is no longer the embedding table.
    `tensors` go by their Hugging Face names and stay untouched; float32 out.
    """
    folded = {name: tensors[name].float() for name in tensors}
    if config.tie_embeddings:
        folded[HEAD] = folded[EMBEDDING]
    readers = {FINAL_NORM: [HEAD]}
    for prefix in _prefixes(config):
        for norm, parts in READERS.items():
            readers[f"{prefix}{norm}.weight"] = [f"{prefix}{part}.weight" for part in parts]
    for norm, names in readers.items():
        for name in names:
            folded[name] = folded[name] * folded[norm]
        folded[norm] = torch.ones_like(folded[norm])
    return equivalent_config(config, "folded"), folded


def rotate_residual(
    tensors: Tensors, config: ModelConfig, matrix: torch.Tensor
) -> tuple[ModelConfig, dict]:
    """Express the residual stream x [H] as x Q, Q = `matrix` [H, H] orthogonal; folds norms first.

    UserError when the matrix has another size or is not orthogonal.
    """
    _check_orthogonal(matrix, config.hidden_size)
    config, rotated = fold_norms(tensors, config)
    matrix = matrix.to(rotated[EMBEDDING])
    names = [EMBEDDING, HEAD]
    for prefix in _prefixes(config):
        names += [f"{prefix}{part}.weight" for parts in READERS.values() for part in parts]
        for part in WRITERS:
            name = f"{prefix}{part}.weight"
            rotated[name] = matrix.T @ rotated[name]
    for name in names:
        rotated[name] = rotated[name] @ matrix
    return config, rotated


def permute_inner(tensors: Tensors, config: ModelConfig, seed: int) -> dict:
    """Shuffle what the residual stream does not see: the inputs of `down` and of `out`.

    MLP channels move freely (rows of gate and up, columns of down), value dimensions within their
    head (rows of v, columns of o of every query head that shares it). So no group of 32 weights
    keeps its members.
    """
    permuted = dict(tensors)
    generator = torch.Generator().manual_seed(seed)
    shares = config.group_size
    for prefix in _prefixes(config):
        order = torch.randperm(config.intermediate_size, generator=generator)
        for part in ("gate_proj", "up_proj"):
            _reorder(permuted, f"{prefix}mlp.{part}.weight", order, dim=0)
        _reorder(permuted, f"{prefix}mlp.down_proj.weight", order, dim=1)
        dims = torch.arange(config.kv_size).view(config.num_kv_heads, config.head_dim)
        dims = dims[:, torch.randperm(config.head_dim, generator=generator)]
        _reorder(permuted, f"{prefix}self_attn.v_proj.weight", dims.flatten(), dim=0)
        if config.qkv_bias:
            _reorder(permuted, f"{prefix}self_attn.v_proj.bias", dims.flatten(), dim=0)
        within = dims - torch.arange(0, config.kv_size, config.head_dim)[:, None]
        starts = torch.arange(0, config.q_size, config.head_dim)[:, None]
        queries = within.repeat_interleave(shares, dim=0) + starts
        _reorder(permuted, f"{prefix}self_attn.o_proj.weight", queries.flatten(), dim=1)
    return permuted


def equivalent_tensors(
    tensors: Tensors, config: ModelConfig, kind: str, seed: int = 0
) -> tuple[ModelConfig, Tensors]:
    """The copy of that kind: "plain", "folded", "rotated", "hadamard" or "permuted".

    "permuted" keeps every outlier a channel of its own and only breaks up groups; "rotated" and
    "hadamard" also spread outliers. All but "plain" are float32 with the norms folded.
    """
    target = equivalent_config(config, kind)
    if kind == "plain":
        return config, tensors
    if (make := MATRICES[kind]) is None:
        return target, fold_norms(tensors, config)[1]
    tensors = rotate_residual(tensors, config, make(config.hidden_size, seed))[1]
    return target, permute_inner(tensors, config, seed) if kind == "permuted" else tensors


def load_equivalent(
    model: str | ModelConfig,
    kind: str = "plain",
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    pack: bool = False,
    *,
    weights: str = "real",
) -> Decoder:
    """Our decoder of an equivalent copy; `pack` as in `load_decoder`, and then it cannot be
    quantized any more. The change of basis is computed in float32 whatever the dtype.
    """
    config = resolve_config(model)
    number, place = torch_dtype(dtype), torch_device(device)
    target = equivalent_config(config, kind)
    work_bytes = 0 if kind == "plain" else weight_bytes(target, "float32")
    check_host_memory(weight_bytes(target, dtype) + work_bytes, f"making {target.name}", place)
    base = open_weights(config, number, place, weights, seed=0)
    target, tensors = equivalent_tensors(base, config, kind, seed)
    decoder = Decoder(target, number, place)
    decoder.load_weights(tensors)
    if pack:
        decoder.pack()
    return decoder


def save_equivalent(
    folder: Path | str,
    model: str | ModelConfig,
    kind: str = "rotated",
    dtype: str = "bfloat16",
    seed: int = 0,
    *,
    weights: str = "real",
) -> Path:
    """Write the copy as a Hugging Face folder that transformers and ONNX exporters load.

    One safetensors file, a config.json with an untied head, and the tokenizer files of real
    weights. Returns `folder`; UserError when it holds something already.
    """
    from safetensors.torch import save_file

    folder, config, number = Path(folder), resolve_config(model), torch_dtype(dtype)
    with new_folder(folder, "copy") as temporary:
        base = open_weights(config, number, torch.device("cpu"), weights, seed=0)
        target, tensors = equivalent_tensors(base, config, kind, seed)
        if weights == "real":
            _copy_small_files(ensure_model(config.name), temporary, target, dtype)
        else:
            hf_config = to_hf_config(target)
            hf_config.dtype = dtype
            hf_config.save_pretrained(temporary)
        plain = {name: tensors[name].to(number).contiguous() for name in tensors}
        save_file(plain, temporary / "model.safetensors", metadata={"format": "pt"})
    return folder


def _copy_small_files(source: Path, folder: Path, target: ModelConfig, dtype: str) -> None:
    """Tokenizer and generation settings as they are; config.json with the copy's own changes."""
    for path in source.iterdir():
        weights = ".safetensors" in path.name
        if path.is_file() and not weights and path.name not in (SOURCE_FILE, STAMP_FILE):
            shutil.copyfile(path, folder / path.name)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"tie_word_embeddings": target.tie_embeddings, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(fields, indent=2))


def _prefixes(config: ModelConfig) -> list[str]:
    return [f"model.layers.{index}." for index in range(config.num_layers)]


def _reorder(tensors: dict, name: str, order: torch.Tensor, dim: int) -> None:
    tensors[name] = tensors[name].index_select(dim, order.to(tensors[name].device))


def _check_orthogonal(matrix: torch.Tensor, size: int) -> None:
    if tuple(matrix.shape) != (size, size):
        raise UserError(
            f"the rotation is {list(matrix.shape)} and the residual stream has {size} channels: "
            f"make one of size {size}"
        )
    square = matrix.double() @ matrix.double().T
    error = (square - torch.eye(size, dtype=torch.float64, device=matrix.device)).abs().max()
    if not error < 1e-4:  # also true for NaN
        raise UserError(
            f"the rotation is not orthogonal (off by {error:.1e}): it would change the model; "
            "use random_orthogonal, hadamard or random_permutation"
        )

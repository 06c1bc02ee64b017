"""How is a quantized decoder kept in files, and refused when it is not what it is said to be?

A folder of two files: `weights.safetensors` (codes, two int4 codes a byte; bfloat16 scales and
offsets; everything else as it is) and `quantized.json`, the header, written last, with the model's
shape, each quantized layer's format and the sha256 of the weights.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inferlab.errors import UserError
from inferlab.models.cachefolder import new_folder
from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Decoder
from inferlab.models.fetch import sha256_file
from inferlab.models.placement import dtype_name, torch_device, torch_dtype
from inferlab.models.projections import projections, replace_projection
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import Quantized, pair_codes, pairs_fit, unpair_codes
from inferlab.quant.linear import QuantizedLinear, make_linear

SCHEMA = "inferlab.quantized/1"
HEADER_FILE, WEIGHTS_FILE = "quantized.json", "weights.safetensors"
MAX_HEADER_BYTES = 4 * 2**20  # a larger header is not ours


@torch.no_grad()
def save_quantized(decoder: Decoder, folder: Path | str) -> Path:
    """Write the quantized `decoder` to a new `folder`; returns it.

    UserError when the folder holds something already, when nothing is quantized, and when a layer
    that stayed plain was packed for oneDNN (its weights are gone).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    formats, tensors = _collect(decoder)
    header = {
        "schema": SCHEMA,
        "config": _shape(decoder.config),
        "dtype": dtype_name(decoder.dtype),
        "formats": formats,
    }
    with new_folder(folder, "checkpoint") as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE)
        header["sha256"] = sha256_file(temporary / WEIGHTS_FILE)
        (temporary / HEADER_FILE).write_text(json.dumps(header, indent=1))
    return folder


@torch.no_grad()
def load_quantized(
    folder: Path | str,
    config: ModelConfig,
    kernel: str = "auto",
    dtype: str | None = None,
    device: str = "cpu",
) -> Decoder:
    """The decoder that `save_quantized` wrote, its products done by `kernel`.

    `config` is the shape that the caller expects (for a rotated copy, `equivalent_config`); `dtype`
    None is the one that was saved. UserError for another shape, a damaged or incomplete folder,
    and a kernel that does not take the format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    header = _read_header(folder)
    _check_shape(header["config"], config, folder)
    if sha256_file(folder / WEIGHTS_FILE) != header["sha256"]:
        raise UserError(
            f"{WEIGHTS_FILE} in {folder} is cut short or changed (another sha256): save it again"
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {WEIGHTS_FILE} in {folder}: {error}") from error
    number, place = torch_dtype(dtype or header["dtype"]), torch_device(device)
    decoder = Decoder(config, number, place)
    try:
        return _fill(decoder, header["formats"], tensors, kernel)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{folder} does not hold a whole {config.name} ({type(error).__name__}: {error}): "
            "save it again"
        ) from error


def _collect(decoder: Decoder) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Formats of the quantized layers, and all tensors, by name."""
    formats: dict[str, dict] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, module in projections(decoder):
        if isinstance(module, QuantizedLinear):
            quantized = module.to_quantized()
            formats[name] = asdict(quantized.format)
            tensors |= {f"{name}.{key}": value for key, value in _to_file(quantized).items()}
            if module.bias is not None:
                tensors[f"{name}.bias"] = module.bias.cpu()
        elif getattr(module, "weight", None) is None:
            raise UserError(
                f"{name} stayed unquantized and was packed, its plain weights are gone: quantize "
                "in float32, or every layer"
            )
    if not formats:
        raise UserError("nothing in this decoder is quantized: quantize_decoder it first")
    for name, parameter in decoder.named_parameters():  # a tied head comes once
        tensors[name] = parameter.detach().cpu().contiguous()
    return formats, tensors


def _fill(
    decoder: Decoder, formats: dict[str, dict], tensors: dict[str, torch.Tensor], kernel: str
) -> Decoder:
    """Put the tensors into their places; each must be used, each place must be filled."""
    left = dict(tensors)
    found = dict(projections(decoder))
    for name, fields in formats.items():
        plain = found[name]
        quantized = _from_file(left, name, WeightFormat(**fields), tuple(plain.weight.shape))
        bias = None if plain.bias is None else left.pop(f"{name}.bias")
        module = make_linear(quantized, bias, kernel, decoder.dtype, decoder.device)
        replace_projection(decoder, name, module)
    for name, parameter in decoder.named_parameters():
        tensor = left.pop(name)
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}")
        parameter.copy_(tensor)
    if left:
        raise ValueError(f"no place for {sorted(left)[0]}")
    return decoder


def _to_file(quantized: Quantized) -> dict[str, torch.Tensor]:
    """Codes, two a byte where they fit; scales and offsets as bfloat16, which is exact."""
    codes = quantized.codes.cpu()
    if pairs_fit(quantized.format, codes.shape[1]):
        codes = pair_codes(codes)
    tensors = {"codes": codes.contiguous(), "scales": quantized.scales.cpu().bfloat16()}
    if quantized.offsets is not None:
        tensors["offsets"] = quantized.offsets.cpu().bfloat16()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _from_file(
    tensors: dict[str, torch.Tensor], name: str, format: WeightFormat, shape: tuple[int, int]
) -> Quantized:
    """Take one layer's tensors out of `tensors`; KeyError or ValueError when they do not fit."""
    codes, scales = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales")
    offsets = None if format.symmetric else tensors.pop(f"{name}.offsets")
    if pairs_fit(format, shape[1]) and codes.dtype == torch.uint8:
        codes = unpair_codes(codes)
    if tuple(codes.shape) != shape or codes.dtype != torch.int8:
        raise ValueError(f"the codes of {name} are {list(codes.shape)} of {codes.dtype}")
    first, last = format.code_range
    groups = (shape[0], format.num_groups(shape[1]))
    for tensor in (scales, *([] if offsets is None else [offsets])):
        if tuple(tensor.shape) != groups or not torch.isfinite(tensor).all():
            raise ValueError(f"the scales of {name} are not finite numbers {list(groups)}")
    if codes.min() < first or codes.max() > last:
        raise ValueError(f"the codes of {name} are outside {first} to {last}")
    return Quantized(codes, scales.float(), None if offsets is None else offsets.float(), format)


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER_FILE
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise ValueError("too large")
        header = json.loads(path.read_text())
        if header["schema"] != SCHEMA:
            raise ValueError("another schema")
        for key, kind in (("config", dict), ("formats", dict), ("dtype", str), ("sha256", str)):
            if not isinstance(header[key], kind):
                raise ValueError(key)
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"no {WEIGHTS_FILE}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a quantized checkpoint ({HEADER_FILE}: {error}): save it again"
        ) from error
    return header


def _shape(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON, without where published weights come from."""
    fields = asdict(config)
    fields.pop("source")
    return fields


def _check_shape(saved: dict[str, Any], config: ModelConfig, folder: Path) -> None:
    for field, expected in _shape(config).items():
        if saved.get(field) != expected:
            raise UserError(
                f"{folder} is a checkpoint of {str(saved.get('name'))[:40]} with {field} "
                f"{str(saved.get(field))[:40]}, not {expected} as {config.name}: load it with its "
                "own configuration"
            )

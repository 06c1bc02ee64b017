"""What should a low-bit kernel compute? The packed layouts, and the products in plain PyTorch.

A weight is w = code * scale + offset (offset 0 in symmetric formats). The 4-bit layout is made for
a tensor core: 128 inputs of a channel lie in 16 words of 32 bits. Word j holds inputs 2 j and
2 j + 1 of each quarter i of the block: code of input 32 i + 2 j + h at bits 4 i + 16 h. Shifting
by 4 i and masking with 0x000F000F then leaves two neighbours where a register keeps a pair of
16-bit numbers, so that unpacking a pair takes one shift and one logic instruction.
Letters: M rows, N output channels, K inputs, G groups of K / G inputs that share a scale.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import torch

BLOCK = 128  # inputs in a block of packed 4-bit codes
WORDS = BLOCK // 8  # 32-bit words in a block of 4-bit codes
WORDS_INT8 = BLOCK // 4
# Of activations, dtype -> smallest and largest code; scales are set by the largest.
CODE_RANGES = {torch.int8: (-128.0, 127.0), torch.float8_e4m3fn: (-448.0, 448.0)}


def num_blocks(in_features: int) -> int:
    """Blocks that hold `in_features` codes; the last one is filled up with zeros."""
    return -(-in_features // BLOCK)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Codes -8..7 [N, K] -> int32 words [blocks, N, 16]: the block first, so that the rows that a
    program reads in one step lie side by side in memory."""
    channels, inputs = codes.shape
    padded = torch.zeros(
        channels, num_blocks(inputs) * BLOCK, dtype=torch.uint8, device=codes.device
    )
    padded[:, :inputs] = codes + 8
    parts = padded.view(channels, -1, 2, 2, WORDS, 2)  # [N, block, i // 2, i % 2, j, h]
    both = parts[:, :, :, 0] | (parts[:, :, :, 1] << 4)  # [N, block, i // 2, j, h]
    bytes_in_order = both.permute(1, 0, 3, 4, 2).contiguous()  # [block, N, j, h, i // 2]
    return bytes_in_order.flatten(-3).view(torch.int32)


def unpack_int4(words: torch.Tensor, in_features: int) -> torch.Tensor:
    """The inverse of `pack_int4`: int8 codes -8..7 [N, K]."""
    blocks, channels, _ = words.shape
    parts = words.view(torch.uint8).view(blocks, channels, WORDS, 2, 2)  # [block, N, j, h, i // 2]
    both = torch.stack((parts & 15, parts >> 4), dim=-1)  # [block, N, j, h, i // 2, i % 2]
    codes = both.permute(1, 0, 4, 5, 2, 3).reshape(channels, blocks * BLOCK)
    return codes[:, :in_features].to(torch.int8) - 8


def pack_int8(codes: torch.Tensor) -> torch.Tensor:
    """Codes -128..127 [N, K] -> int32 words [blocks, N, 32]: the code of input 64 i + 2 j + h of a
    block is in word j, at bits 8 i + 16 h, in two's complement. Zeros fill up the last block."""
    channels, inputs = codes.shape
    padded = codes.new_zeros(channels, num_blocks(inputs) * BLOCK)
    padded[:, :inputs] = codes
    parts = padded.view(channels, -1, 2, WORDS_INT8, 2)  # [N, block, i, j, h]
    bytes_in_order = parts.permute(1, 0, 3, 4, 2).contiguous()  # [block, N, j, h, i]
    return bytes_in_order.flatten(-3).view(torch.int32)


def unpack_int8(words: torch.Tensor, in_features: int) -> torch.Tensor:
    """The inverse of `pack_int8`: int8 codes [N, K]."""
    blocks, channels, _ = words.shape
    parts = words.view(torch.int8).view(blocks, channels, WORDS_INT8, 2, 2)
    codes = parts.permute(1, 0, 4, 2, 3).reshape(channels, blocks * BLOCK)
    return codes[:, :in_features].contiguous()


def pack_grids(
    scales: torch.Tensor, offsets: torch.Tensor | None, group_size: int = 0
) -> torch.Tensor:
    """Scales and offsets [N, G] -> int32 [G', N]: both as bfloat16, the offset in the upper half.

    One word for both is the least that the GPU's asynchronous copies take; a symmetric format
    stores an offset of zero. `group_size` under 128: filled up with zeros to whole blocks.
    """
    if offsets is None:
        offsets = torch.zeros_like(scales)
    both = torch.stack((scales, offsets), dim=-1).to(torch.bfloat16)  # [N, G, 2]
    if 0 < group_size < BLOCK:
        missing = -both.shape[1] % (BLOCK // group_size)
        both = torch.nn.functional.pad(both, (0, 0, 0, missing))
    return both.transpose(0, 1).contiguous().view(torch.int32)[..., 0]


def unpack_grids(grids: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `pack_grids`: scales and offsets, float32 [N, G]."""
    both = grids[:num_groups, :, None].view(torch.bfloat16).float().transpose(0, 1)
    return both[..., 0].contiguous(), both[..., 1].contiguous()


def weight_of(
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Weights [N, K] of codes [N, K], scales and offsets [N, G], computed in `dtype`."""
    grouped = codes.unflatten(1, (scales.shape[1], -1)).to(dtype) * scales.to(dtype)[..., None]
    if offsets is not None:
        grouped = grouped + offsets.to(dtype)[..., None]
    return grouped.flatten(1)


def multiply(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """y [M, N] = x [M, K] W^T in `dtype`: what both kernels are judged against."""
    return x.to(dtype) @ weight_of(codes, scales, offsets, dtype).t()

"""How are keys and values kept so that a step looks the same at every length?

A compiled step and a CUDA graph fix shapes and addresses. So a new token is written where a tensor
on the device says, and attention reads a bucket of fixed width under a mask made from that tensor.
Letters: B sequences, T new tokens, G key/value heads, R query heads each, D head size.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError
from inferlab.kernels.attention import attend, attend_fusible
from inferlab.kvcache.base import CacheShape
from inferlab.kvcache.view import StoreView

BUCKET_SIZE = 128  # positions by which the width that a step reads grows
ALIGNMENT = 8  # a row of the mask then has whole 16 bytes, as attention kernels of a GPU want it


def bucket_width(end: int, capacity: int, size: int = BUCKET_SIZE) -> int:
    """Positions that a step reads whose newest token is the `end`-th: a multiple of `size`, or
    as many as the store has: `capacity` and what aligns it.
    """
    return min(-(-end // size) * size, -(-capacity // ALIGNMENT) * ALIGNMENT)


def bucket_mask(slots: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, 1, width], 0 up to the newest token of each sequence at `slots` [B], then -inf."""
    unread = torch.arange(width, device=slots.device) > slots[:, None]
    mask = torch.zeros(unread.shape, dtype=dtype, device=slots.device)
    return mask.masked_fill(unread, float("-inf"))[:, None, None, :]


def write_at(store: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    """Put [B, G, 1, D] into `store` [B, G, S, D] at position `slots` [B] of each sequence."""
    store.scatter_(2, slots[:, None, None, None].expand(new.shape), new)


class BucketStep:
    """What a step of one token reads and writes: views [B, G, width, D] of each layer's store."""

    recomputes = False
    length = 0  # nothing of a step depends on it

    def __init__(
        self, keys: list[torch.Tensor], values: list[torch.Tensor], slots: torch.Tensor
    ) -> None:
        self.keys, self.values, self.slots = keys, values, slots

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, G, 1, D] at `slots` [B]; returns the views."""
        write_at(self.keys[layer], self.slots, keys)
        write_at(self.values[layer], self.slots, values)
        return self.keys[layer], self.values[layer]

    def advance(self, num_positions: int) -> None:
        """The cache counts for itself."""


class FusibleStep(BucketStep):
    """The same with attention in operations that a compiler fuses."""

    def attend(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Write [B, G, 1, D] and attend: queries [B, 1, G R, D] -> [B, 1, G R D]."""
        return attend_fusible(queries, *self.update(layer, keys, values), mask)


class BucketedCache:
    """[B, G, S, D] a layer, S = capacity or a little more, each its own tensor, written by index.

    Not one tensor for all layers: a compiler that makes writes functional would copy all of it at
    each. Sequence b stores its tokens from position 0 on, without the padding that `generate` puts
    in front: their rotary position is their place. `keys`, `values` (one a layer), `slots` int64
    [B] (the newest token's place) and `lengths` int32 [B] (newest token included) keep their
    addresses. `length`, that of the longest sequence, is known to the host alone.
    """

    recomputes = False

    def __init__(
        self,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        bucket_size: int = BUCKET_SIZE,
    ) -> None:
        self.shape = shape
        self.bucket_size = bucket_size
        # One position to spare: else the widest bucket is contiguous, and compiled code that was
        # made for the others is not for that one.
        widest = bucket_width(shape.capacity, shape.capacity, ALIGNMENT)
        size = (shape.batch_size, shape.num_kv_heads, widest + 1, shape.head_dim)

        def stores() -> list[torch.Tensor]:
            # Filled: 0 times what is unread must not be NaN, and the pages must exist.
            made = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
            return [store.zero_().narrow(2, 0, widest) for store in made]

        # Plain tensors even in inference mode: compiled code must meet one kind only.
        with torch.inference_mode(False):
            self.keys, self.values = stores(), stores()
            self.slots = torch.zeros(shape.batch_size, dtype=torch.int64, device=device)
            self.lengths = torch.zeros(shape.batch_size, dtype=torch.int32, device=device)
        self.reset()

    @property
    def width(self) -> int:
        """Positions that a step of one token reads now."""
        return bucket_width(self.length + 1, self.shape.capacity, self.bucket_size)

    def begin(self, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Say where T new tokens go, before the first layer; returns the mask for attention.

        `positions` [B or 1, T] as given to the decoder. `mask` is only asked whether a prompt is
        padded on the left, as `generate` does; a step of one token gets one made from `positions`.
        CacheTooSmall before anything is written.
        """
        new = positions.shape[1]
        self.shape.check_room(self.length + new, "bucketed")
        if new > 1 and self.length and (mask is not None or self._uneven):
            raise UserError(
                "the bucketed cache takes prompts of unequal length only when it is empty: "
                "use the static cache to read several tokens behind them"
            )
        self.place(positions)
        if new == 1:
            self._step = self.step(self.width)
            return bucket_mask(self.slots, self.width, self.keys[0].dtype)
        self._uneven = mask is not None
        return mask

    def place(self, positions: torch.Tensor) -> None:
        """Set `slots` and `lengths` for new tokens at `positions` [B or 1, T]; checks nothing."""
        self.slots.copy_(positions[:, -1].expand(self.slots.shape))
        self.lengths.copy_(self.slots + 1)

    def attend(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store [B, G, T, D] and attend: queries [B, T, G R, D] -> [B, T, G R D].

        `mask` is what `begin` returned.
        """
        if keys.shape[2] == 1:
            return attend(queries, *self._step.update(layer, keys, values), mask)
        if not self._uneven:
            return attend(queries, *self.update(layer, keys, values), mask)
        mixed = attend(queries, keys, values, mask)
        # Without the padding; what then stands behind the last token is overwritten in time.
        new = keys.shape[2]
        places = torch.arange(new, device=keys.device) + (new - 1 - self.slots[:, None])
        places = places.clamp(max=new - 1)[:, None, :, None].expand(keys.shape)
        self.update(layer, keys.gather(2, places), values.gather(2, places))
        return mixed

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, G, T, D] behind the stored positions of all; returns views [B, G, S, D]."""
        start, new = self.length, keys.shape[2]
        end = start + new
        self.shape.check_room(end, "bucketed")
        stored_keys, stored_values = self.keys[layer], self.values[layer]
        stored_keys.narrow(2, start, new).copy_(keys)
        stored_values.narrow(2, start, new).copy_(values)
        return stored_keys.narrow(2, 0, end), stored_values.narrow(2, 0, end)

    def step(self, width: int) -> BucketStep:
        """The part of the cache that a compiler may see in a step of one token."""
        keys = [store.narrow(2, 0, width) for store in self.keys]
        values = [store.narrow(2, 0, width) for store in self.values]
        return BucketStep(keys, values, self.slots)

    def view(self, layer: int) -> StoreView:
        """Where kernels find the layer: the whole store, `lengths` says what to read."""
        return StoreView(self.keys[layer], self.values[layer], self.lengths)

    def advance(self, num_positions: int) -> None:
        """Count the written positions."""
        self.length += num_positions

    def reset(self) -> None:
        """Start again at position 0; what was written is overwritten in time."""
        self.length = 0
        self._uneven = False

    def num_bytes(self) -> int:
        """Bytes of the whole capacity, filled or not, and of the few to spare."""
        return sum(store.untyped_storage().nbytes() for store in (*self.keys, *self.values))

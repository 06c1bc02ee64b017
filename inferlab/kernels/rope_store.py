"""How do queries and keys get their rotation, and keys and values their place, in one pass?

Between the fused product and attention lie: optional norms of queries and keys, two rotations and
two writes into the store, each a launch of its own that reads and writes a few kilobytes. Here a
program takes one head of one token: reads it once, norms it, turns it, and writes it to where
attention will read it: queries to a tensor of their own, keys and values straight to their slot.

What a cache gives to be written this way (`models.fused` asks for it, in this order, each step):
  cache.slots(positions) -> int64 [B T], rows of the store seen as [N P, G, D] (slot = block times P
      plus place; -1: stored nowhere). Called once before the layers, with int64 positions
      [B or 1, T] on the device (negative: a padded column). It makes room for them (host side,
      which may raise) and from then on `view(layer).lengths` is positions[:, -1] + 1: the newest
      token included. For one token a sequence it never waits for the device.
      `StoreView.slots(positions)` computes it for dense and paged stores alike.
  cache.view(layer) -> StoreView, its tensors at the same addresses at every step (CUDA graphs).
  cache.advance(T) after the layers, as ever.

Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

"""How is a paged store drawn: what is wasted, what runs in it, what following a table costs?

Chapter: chapters/22_paged_attention.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inferlab.errors import UserError
from inferlab.plot_style import INK, QUIET, style_of
from inferlab.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def waste_by_block(
    ax: Axes, waste: Mapping[str, Mapping[int, float]], reserved: Mapping[str, Mapping[str, float]],
    by_hand: Mapping[int, float],
) -> None:  # fmt: skip
    """Waste of paging by block size, a line a mix, and of reservations as levels at the right.

    `waste[mix][block_size]`, `reserved[mix][policy]`; `by_hand[block_size]` is the dashed estimate.
    """
    if not waste:
        raise UserError("a figure of waste needs at least one mix of lengths")
    looks = zip(waste.items(), "oDs^", ("bottom", "top") * 2, strict=False)
    for (mix, values), marker, side in looks:
        color = style_of("paged").color
        ax.plot(list(values), list(values.values()), marker=marker, color=color, mec="white",
                ls=":", label=f"paged, {mix}")  # fmt: skip
        for policy, value in reserved[mix].items():
            style = style_of(policy)
            ax.plot(max(values) * 2, value, marker=marker, color=style.color, mec="white", ls="")
            ax.annotate(f"{policy}, {mix}", (max(values) * 2, value), xytext=(8, 0), va=side,
                        textcoords="offset points", fontsize=10, color=INK)  # fmt: skip
    ax.plot(list(by_hand), list(by_hand.values()), "--", lw=1.3, color=QUIET, label="half a block")
    sizes = list(next(iter(waste.values())))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="block size (tokens), log scale",
        ylabel="share that holds nothing, log scale",
        xlim=(min(sizes) * 0.8, max(sizes) * 9),
    )
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.minorticks_off()
    ax.legend(loc="lower right")


def by_policy(ax: Axes, values: Mapping[str, Estimate], predicted: Mapping[str, float],
              label: str) -> None:  # fmt: skip
    """One bar a policy with its interval; what was predicted as a line across it."""
    for place, (policy, found) in enumerate(values.items()):
        ax.bar(place, found.value, width=0.6, color=style_of(policy).color)
        if found.has_interval:
            ends = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
            ax.errorbar(place, found.value, yerr=ends, color=INK, capsize=0)
        ax.plot([place - 0.38, place + 0.38], [predicted[policy]] * 2, "--", lw=1.5, color=INK,
                label="prediction" if not place else None)  # fmt: skip
    highest = max([*predicted.values(), *(found.value for found in values.values())])
    ax.set(ylabel=label, ylim=(0, 1.3 * highest))  # room for the legend
    ax.set_xticks(range(len(values)), list(values))
    ax.legend(loc="upper left")


def price_by_block(ax: Axes, rows: Sequence[Mapping]) -> None:
    """Time over that of a dense store by block size, a line a shape; predictions dashed.

    `rows` as from `pagingcost.price_rows`: block_size, batch_size, context_len, ratio, predicted.
    """
    if not rows:
        raise UserError("the record has no paged case beside a dense one")
    shapes = sorted({(row["batch_size"], row["context_len"]) for row in rows})
    for shape, marker in zip(shapes, "oD^svPX", strict=False):
        own = [row for row in rows if (row["batch_size"], row["context_len"]) == shape]
        sizes = [row["block_size"] for row in own]
        values = np.array([row["ratio"].value for row in own])
        ends = np.array([[row["ratio"].low, row["ratio"].high] for row in own])
        errors = np.clip(np.nan_to_num(np.abs(ends - values[:, None])).T, 0, None)
        line = ax.errorbar(sizes, values, yerr=errors, marker=marker, mec="white", capsize=0,
                           label=f"batch {shape[0]}, {shape[1]} tokens")  # fmt: skip
        ax.plot(sizes, [row["predicted"] for row in own], "--", lw=1.2, color=line[0].get_color())
    ax.axhline(1, color=QUIET, ls=":", lw=1.2)
    ax.plot([], [], "--", lw=1.2, color=QUIET, label="prediction")
    sizes = sorted({row["block_size"] for row in rows})
    ax.set(xscale="log", xlabel="block size (tokens), log scale", ylabel="time over dense",
           ylim=(0, None))  # fmt: skip
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.minorticks_off()
    ax.legend()

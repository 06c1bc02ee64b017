"""What nbval lacks: a dead kernel fails at once, and a notebook that was never run is refused.

nbval waits for a message until its cell timeout (2000 s by default) even when the kernel process
is gone, for example killed by the out-of-memory killer; and it compares nothing in a cell whose
execution count is null.
"""

from __future__ import annotations

import time
from queue import Empty

import pytest

POLL_S = 1.0
OUTPUT_WAIT_S = 30  # nbval's fixed 5 s is too short on a busy machine


# myst-nb takes glued values out of the notebook that it stores after the build: they stand in the
# page, where tests/book/test_pages.py looks for them.
GLUED = tuple(
    f"application/papermill.record/{kind}"
    for kind in (
        "text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/svg+xml",
        "application/json",
    )
)  # fmt: skip


class DeadKernelError(RuntimeError):
    """The kernel process ended while a cell was running."""


def _watch_kernel() -> None:
    """Make nbval's wait for a message look at the kernel process every second."""
    from nbval import kernel as nbval_kernel

    if getattr(nbval_kernel.RunningKernel, "watches_process", False):
        return
    wait_for_message = nbval_kernel.RunningKernel.get_message

    def get_message(self, stream, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left_s = POLL_S if deadline is None else deadline - time.monotonic()
            try:
                return wait_for_message(self, stream, timeout=max(0.0, min(POLL_S, left_s)))
            except Empty:
                if not self.is_alive():
                    raise DeadKernelError(
                        "the kernel died while this cell ran (killed from outside? the "
                        "out-of-memory killer leaves a line in dmesg)"
                    ) from None
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    nbval_kernel.RunningKernel.get_message = get_message
    nbval_kernel.RunningKernel.watches_process = True


def pytest_configure(config) -> None:
    if getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False):
        _watch_kernel()


def pytest_collection_modifyitems(session, config, items) -> None:
    """Longer output wait; a null execution count is an error, not a silent pass."""
    for item in items:
        if type(item).__name__ != "IPyNbCell":
            continue
        item.output_timeout = OUTPUT_WAIT_S
        item.parent.skip_compare = (*item.parent.skip_compare, *GLUED)
        if item.cell.source.strip() and item.cell.execution_count is None:
            raise pytest.UsageError(
                f"{item.parent.path.name}: code cell {item.cell_num} has no execution count, so "
                "nbval would compare nothing: run the notebook from top to bottom and save it"
            )

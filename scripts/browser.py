"""Open the built book in headless Chromium over a server that only this machine can reach."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
MODES = ("light", "dark")


def find_chromium() -> str | None:
    """The Chromium that is installed, or the one that CHROMIUM names."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args) -> None:
        pass


@contextmanager
def serve(folder: Path = HTML) -> Iterator[str]:
    """Address of a server for `folder` on 127.0.0.1, at a free port."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def open_browser() -> Iterator:
    """A headless Chromium; FileNotFoundError when none is installed."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise FileNotFoundError("no Chromium: apt-get install chromium, or set CHROMIUM")
    arguments = ["--disable-dev-shm-usage", "--disable-gpu"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to run as root with it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser, size: str, mode: str):
    """A page of that size in that colour mode, as a returning reader has it."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=mode,
        has_touch=size == "phone", reduced_motion="reduce",
    )  # fmt: skip
    context.add_init_script(
        f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}');"
    )
    return context.new_page()


def settle(page, address: str) -> None:
    """Open `address` and wait until fonts and maths are in place."""
    page.goto(address, wait_until="load")
    page.evaluate("document.fonts.ready")
    page.evaluate(
        "window.MathJax && MathJax.startup && MathJax.startup.promise"
        " ? MathJax.startup.promise.then(() => true) : true"
    )

"""Each page in a real browser: nothing leaves the machine, no error, no overflow, axe content."""

from __future__ import annotations

import importlib.resources
import sys
from urllib.parse import urlsplit

import pytest
from toc import HTML, ROOT, toc_files

sys.path.insert(0, str(ROOT / "scripts"))
import browser as book_browser  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.built]
PAGES = [*toc_files(), "search"]
VARIANTS = [(size, mode) for size in book_browser.SIZES for mode in book_browser.MODES]
GRAVE = {"serious", "critical"}

# Findings of axe-core that we accept, each with its reason. Nothing else is excluded.
ACCEPTED: dict[str, str] = {}


@pytest.fixture(scope="module")
def address():
    if not (HTML / "index.html").exists():
        pytest.fail("the book is not built: python scripts/build_book.py")
    with book_browser.serve() as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    if book_browser.find_chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): pages NOT looked at")
    with book_browser.open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def axe_source() -> str:
    return (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text()


class Watched:
    """A page that notes requests to other machines and errors on its console."""

    def __init__(self, browser, size: str, mode: str, address: str):
        self.page = book_browser.new_page(browser, size, mode)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.home = urlsplit(address).netloc
        self.page.route("**/*", self._route)
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _route(self, route) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.netloc != self.home:
            self.foreign.append(route.request.url)
            route.abort()
        else:
            route.continue_()


@pytest.fixture(scope="module")
def watched(chromium, address):
    """One watched page for each size and mode, kept for the whole module."""
    pages: dict = {}

    def get(size: str, mode: str) -> Watched:
        if (size, mode) not in pages:
            pages[size, mode] = Watched(chromium, size, mode, address)
        pages[size, mode].foreign.clear()
        pages[size, mode].errors.clear()
        return pages[size, mode]

    yield get
    for found in pages.values():
        found.page.context.close()


def grave_findings(page, axe_source: str) -> list[str]:
    """Serious and critical findings of axe-core, each with the first element it names."""
    page.evaluate(axe_source)
    answer = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")
    return [
        f"{found['id']} ({found['impact']}, {len(found['nodes'])}x): {found['help']}: "
        f"{found['nodes'][0]['html'][:140]}"
        for found in answer["violations"]
        if found["impact"] in GRAVE and found["id"] not in ACCEPTED
    ]


@pytest.mark.parametrize(("size", "mode"), VARIANTS)
@pytest.mark.parametrize("name", PAGES)
def test_page_in_the_browser(name, size, mode, watched, address, axe_source):
    found = watched(size, mode)
    book_browser.settle(found.page, f"{address}/{name}.html")
    assert found.page.evaluate("document.documentElement.dataset.theme") == mode
    widths = found.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    findings = grave_findings(found.page, axe_source)
    assert not found.foreign, f"requests to other machines: {found.foreign}"
    assert not found.errors, f"errors on the console: {found.errors}"
    assert widths[0] <= widths[1] + 1, f"the page is {widths[0]} wide on a {widths[1]} screen"
    assert not findings, "\n".join(findings)


def test_maths_is_set_and_fonts_come_with_the_book(watched, address):
    found = watched("wide", "light")
    book_browser.settle(found.page, f"{address}/notation.html")
    assert found.page.locator("mjx-container").count() > 3
    found.page.evaluate("document.fonts.load('16px \"Book Serif\"')")
    assert found.page.evaluate("document.fonts.check('16px \"Book Serif\"')")


def test_search_finds_a_term_without_a_network(watched, address):
    found = watched("wide", "light")
    found.page.goto(f"{address}/search.html?q=goodput")
    found.page.wait_for_selector("#search-results li a", timeout=15_000)
    assert "lossary" in found.page.locator("#search-results").inner_text()
    assert not found.foreign

"""The built book is complete: every page, its title, its figures and its numbers."""

from __future__ import annotations

import json
import re

import pytest
from bs4 import BeautifulSoup
from chapter_rules import code_cells, split_front_matter
from toc import HTML, LABS, ROOT, source_of, toc_files

pytestmark = pytest.mark.built
PAGES = toc_files()
GENERATED = ["search", "genindex"]
UNRENDERED = re.compile(
    r"\{(?:glue|assumed|term|cite|doc|numref|eq|ref)(?::\w+)?\}`|\{\{|⚠|WARNING:"
)


@pytest.fixture(scope="module", autouse=True)
def _built():
    if not (HTML / "index.html").exists():
        pytest.fail("the book is not built: python scripts/build_book.py")


def page(name: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def article(name: str) -> BeautifulSoup:
    found = page(name).find("article")
    assert found is not None, f"{name} has no article"
    return found


def source_title(name: str) -> str:
    path = source_of(name)
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    else:
        text = split_front_matter(path.read_text(encoding="utf-8"))[1]
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1].strip()


def plain(text: str) -> str:
    """Letters and digits only: markup, quotes and dashes differ between source and page."""
    return re.sub(r"[\W_]+", "", text)


@pytest.mark.parametrize("name", PAGES)
def test_page_exists_with_its_title(name):
    assert (HTML / f"{name}.html").stat().st_size > 4000
    title = article(name).find("h1")
    assert title is not None, f"{name} has no title"
    assert plain(source_title(name)) in plain(title.get_text())


@pytest.mark.parametrize("name", [name for name in PAGES if name not in LABS])
def test_prose_page_is_rendered(name):
    body = article(name)
    for code in body.find_all(["pre", "code"]):
        code.extract()
    text = body.get_text(" ")
    assert not UNRENDERED.search(text), f"{name}: {UNRENDERED.search(text)[0]!r} is not rendered"
    assert "Traceback (most recent call last)" not in article(name).get_text()
    assert not body.select(".system-message, .stderr, .problematic")


@pytest.mark.parametrize("name", [name for name in PAGES if name not in LABS])
def test_page_has_its_figures_and_numbers(name):
    text = split_front_matter(source_of(name).read_text(encoding="utf-8"))[1]
    drawn = sum("figure:" in options for options, _ in code_cells(text))
    placed = len(re.findall(r"^(?:`{3,}|:{3,})\{(?:figure|glue:figure)\}", text, re.MULTILINE))
    figures = article(name).find_all("figure")
    assert len(figures) >= drawn + placed, f"{len(figures)} figures, {drawn + placed} in the source"
    glued = len(re.findall(r"\{glue:text\}`", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)))
    shown = [span.get_text().strip() for span in article(name).select(".pasted-text")]
    assert len(shown) >= glued, f"{len(shown)} glued numbers, {glued} in the source"
    assert all(re.search(r"\w", text) and text not in ("nan", "None") for text in shown)


@pytest.mark.parametrize("name", LABS)
def test_lab_shows_its_stored_outputs(name):
    cells = json.loads(source_of(name).read_text(encoding="utf-8"))["cells"]
    stored = sum(
        any(key.startswith("image/") for key in output.get("data", {}))
        for cell in cells for output in cell.get("outputs", [])
    )  # fmt: skip
    body = article(name)
    assert len(body.select(".cell_output img, .cell_output svg")) >= stored
    assert len(body.select("div.cell")) == sum(c["cell_type"] == "code" for c in cells)


@pytest.mark.parametrize("name", PAGES)
def test_every_image_exists_and_says_what_it_shows(name):
    for image in article(name).find_all("img"):
        if not image["src"].startswith("data:"):
            assert ((HTML / name).parent / image["src"]).resolve().exists(), image["src"]
        words = image.get("alt", "")
        assert name in LABS or (len(words) > 10 and not re.search(r"\.(png|svg|jpe?g)$", words)), (
            f"{image['src'][-60:]} has the alt text {words!r}"
        )


@pytest.mark.parametrize("name", PAGES + GENERATED)
def test_nothing_on_the_page_is_loaded_from_elsewhere(name):
    tree = page(name)
    loaded = [tag.get("src") for tag in tree.find_all(["script", "img", "iframe", "source"])]
    loaded += [tag.get("href") for tag in tree.find_all("link") if tag.get("rel") != ["canonical"]]
    for address in filter(None, loaded):
        assert not re.match(r"(https?:)?//", address), f"{name} loads {address}"
    inline = " ".join(tag.get_text() for tag in tree.find_all("script") if not tag.get("src"))
    assert not re.search(r"https?://(?!localhost)", inline), f"{name}: an address in a script"


def test_labs_can_be_downloaded():
    for name in LABS:
        assert page(name).select_one("a.btn-download-source-button[href$='.ipynb']") is not None
        assert (HTML / "_sources" / f"{name}.ipynb").exists()


def test_the_search_index_knows_the_pages():
    index = (HTML / "searchindex.js").read_text(encoding="utf-8")
    for name in PAGES:
        assert f'"{name}"' in index


def test_there_is_one_search_field_and_no_foreign_logo():
    for name in PAGES:
        tree = page(name)
        assert len(tree.select(".search-button-field")) == 1
        assert len(tree.select("header .search-button, .navbar-persistent--mobile")) == 0
        assert tree.select_one(".book-brand svg") is not None
        assert not tree.select("img.logo__image")


def test_repository_buttons_only_with_an_address():
    address = re.search(r'^  url: "(.*)"', (ROOT / "_config.yml").read_text(), re.MULTILINE)[1]
    buttons = page(PAGES[1]).select(".btn-source-repository-button, .btn-source-edit-button")
    assert bool(buttons) == bool(address)

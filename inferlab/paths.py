"""Where do the book's own files lie: records, claims, cited figures, labs?"""

from __future__ import annotations

from pathlib import Path


def book_root() -> Path:
    """The checkout of the book: beside the package, or above the working directory.

    A package installed without the checkout (a wheel) finds the book that it is run in. When there
    is none, the working directory is returned, and readers of data then find nothing.
    """
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "data" / "records").is_dir() and (folder / "inferlab").is_dir():
            return folder
    return here


def data_folder() -> Path:
    """The book's `data/`."""
    return book_root() / "data"


def labs_folder() -> Path:
    """The book's `labs/`."""
    return book_root() / "labs"


def shown_path(path: Path) -> str:
    """`path` as a message shows it: relative to the book where it lies inside."""
    try:
        return str(path.resolve().relative_to(book_root().resolve()))
    except ValueError:
        return str(path)

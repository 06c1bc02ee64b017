"""Pictures of every page, wide and phone, light and dark, to look at: .make/screenshots/.

`python scripts/screenshots.py [PAGE ...]`, a page as in _toc.yml, for example chapters/02_roofline.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "book"))
from browser import HTML, MODES, ROOT, SIZES, new_page, open_browser, serve, settle  # noqa: E402
from toc import toc_files  # noqa: E402

TARGET = ROOT / ".make" / "screenshots"


def main() -> int:
    if not (HTML / "index.html").exists():
        print("error: the book is not built: make book", file=sys.stderr)
        return 2
    names = sys.argv[1:] or toc_files()
    TARGET.mkdir(parents=True, exist_ok=True)
    try:
        with serve() as address, open_browser() as browser:
            for size in SIZES:
                for mode in MODES:
                    page = new_page(browser, size, mode)
                    for name in names:
                        settle(page, f"{address}/{name}.html")
                        file = TARGET / f"{name.replace('/', '-')}-{size}-{mode}.png"
                        page.screenshot(path=file, full_page=True)
                        print(file.relative_to(ROOT), flush=True)
                    page.context.close()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

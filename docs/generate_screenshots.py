# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Screenshots of all pages, for docs/images/pages: what a phone and a desktop show at first, and three in a row.

    apt-get install chromium chromium-driver && pip install selenium
    python docs/generate_screenshots.py [QUICKSTART]

With the folder of a finished quickstart its report, the page of its run and a panel of it take the place of samples.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import MISSING, Browser, installed  # noqa: E402
from tests.every_page import WIDTHS, looks, write_pages  # noqa: E402

OUT = ROOT / "docs" / "images" / "pages"


def main() -> None:
    """Write the pictures, and say how each page fits."""
    programs = installed()
    if programs is None:
        raise SystemExit(MISSING)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pages = write_pages(Path(folder) / "pages")
        if len(sys.argv) > 1:
            root = Path(sys.argv[1])
            run = root / "runs" / "g4u"
            panel = max((run / "panels").glob("step_*.html"))
            pages |= {"quickstart": root / "report.html", "run": run / "index.html", "panel": panel}
        with Browser(*programs, Path(folder) / "profile") as browser:
            for look in looks(browser, pages, OUT):
                print(look)  # noqa: T201
    shown = [Image.open(OUT / f"{name}_{min(WIDTHS)}.png") for name in ("panel", "run", "quickstart")]
    row = Image.new("RGB", (sum(one.width for one in shown), max(one.height for one in shown)), "white")
    for place, one in enumerate(shown):
        row.paste(one, (place * one.width, 0))
    row.save(OUT / "phones.png")


if __name__ == "__main__":
    main()

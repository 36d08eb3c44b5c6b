# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pages in headless Chromium, on a phone and on a desktop, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import MISSING, Browser, installed
from tests.every_page import SCHEMES, WIDTHS, looks, write_pages

#: Of text of usual size, WCAG 2.2, 1.4.3.
LEAST_CONTRAST = 4.5


@pytest.mark.slow
def test_every_page_fits_and_can_be_read(tmp_path: Path) -> None:
    programs = installed()
    if programs is None:
        pytest.skip(MISSING)
    pages = write_pages(tmp_path / "pages")
    with Browser(*programs, tmp_path / "profile") as browser:
        found = list(looks(browser, pages))
    assert len(found) == len(pages) * len(WIDTHS) * len(SCHEMES)
    for look in found:
        assert look.wider_by <= 0 and not look.without_pixels and not look.faults, look
        assert look.contrast >= LEAST_CONTRAST, look

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pages in headless Chromium, on a phone and on a desktop, light and dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import browser

#: Of text of usual size, WCAG 2.2, 1.4.3.
LEAST_CONTRAST = 4.5


@pytest.mark.slow
def test_every_page_fits_and_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    pages = browser.write_pages(tmp_path)
    found = list(browser.looks(pages))
    assert len(found) == len(pages) * len(browser.WIDTHS) * len(browser.SCHEMES)
    for look in found:
        assert look.wider_by <= 0 and not look.without_pixels and not look.faults, look
        assert look.contrast >= LEAST_CONTRAST, look
